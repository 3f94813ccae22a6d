import { existsSync } from "node:fs";
import { connect as connectSocket } from "node:net";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { type StackOptions, startStack } from "../../scripts/start.js";

/** `npm test` has bundled the page; a run of this file alone may have to. */
const prepared = existsSync(fileURLToPath(new URL("../../dist/page/index.html", import.meta.url)));
const options: StackOptions = { port: 0, originPort: 0, inference: "simulated", prepared, onLine: () => {} };

function isListening(url: string): Promise<boolean> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve) => {
    const socket = connectSocket({ host: hostname, port: Number(port) });
    const settle = (listening: boolean): void => {
      socket.destroy();
      resolve(listening);
    };
    socket.once("connect", () => settle(true)).once("error", () => settle(false));
  });
}

// What `npm start` prints must be true: the page is there and a ticket can be had, and afterwards nothing stays behind.
test("origin and edge start together, serve, and stop", async () => {
  const stack = await startStack(options);
  try {
    expect(stack.engine).toContain("simulated");
    const page = await fetch(stack.edgeUrl);
    expect(page.status).toBe(200);
    expect(await page.text()).toContain("<!doctype html>");
    expect((await fetch(`${stack.originUrl}/readyz`)).status).toBe(200);
    const ticket = await fetch(`${stack.edgeUrl}/v1/tickets`, { method: "POST", headers: { origin: stack.edgeUrl } });
    expect(ticket.status).toBe(200);
  } finally {
    await stack.stop();
  }
  expect(await isListening(stack.edgeUrl)).toBe(false);
  expect(await isListening(stack.originUrl)).toBe(false);
});

test("an origin that dies is told, and the edge can still be stopped", async () => {
  const stack = await startStack(options);
  try {
    process.kill(stack.originPid, "SIGKILL");
    expect(await stack.broken).toBe("the origin was ended by SIGKILL");
  } finally {
    await stack.stop();
  }
  expect(await isListening(stack.edgeUrl)).toBe(false);
});

test("an origin that refuses to start takes the edge with it, and says why", async () => {
  const lines: string[] = [];
  const start = startStack({ ...options, slots: "none", onLine: (line) => lines.push(line) });
  await expect(start).rejects.toThrow(/the origin ended with exit status 1 before it was ready/);
  expect(lines.join("\n")).toContain("--slots");
});
