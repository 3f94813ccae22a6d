import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ServerProcess, type ServerSpec } from "../../scripts/setup/child.js";
import { claimPort } from "../../scripts/setup/ports.js";
import { parseStartFlags } from "../../scripts/start.js";

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "millrace-servers-"));
});

afterEach(() => rmSync(folder, { recursive: true }));

/** Runs `script` as the server; `change` alters how it is watched. */
function serve(script: string, change: Partial<ServerSpec> = {}): ServerProcess {
  const path = join(folder, "server.mjs");
  writeFileSync(path, script);
  const watch = { ready: /^ready on (\d+)/, readyMsMax: 20_000, stopMsMax: 10_000, onErrorLine: () => {} };
  return new ServerProcess({ name: "the server", args: [path], cwd: folder, env: process.env, ...watch, ...change });
}

const untilStopped = "setInterval(() => {}, 1000);";

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

describe("a server process", () => {
  test("is ready when its line comes, hands over stderr, and stops when asked", async () => {
    const lines: string[] = [];
    const onErrorLine = (line: string): void => void lines.push(line);
    const server = serve(`console.error("loading"); console.log("hello"); console.log("ready on 7"); ${untilStopped}`, { onErrorLine });
    expect((await server.ready)[1]).toBe("7");
    expect(lines).toEqual(["loading"]);
    await server.stop();
    expect(await server.ended).toBe("was ended by SIGTERM");
    expect(isRunning(server.pid)).toBe(false);
  });

  test("gets to finish what it does when it is asked to stop", async () => {
    const server = serve(`process.on("SIGTERM", () => setTimeout(() => process.exit(5), 50)); console.log("ready on 7"); ${untilStopped}`);
    await server.ready;
    await server.stop();
    expect(await server.ended).toBe("ended with exit status 5");
  });

  test("is killed when it does not stop, with the processes it started", async () => {
    const grandchild =
      'import { spawn } from "node:child_process"; const child = spawn("sleep", ["600"]); console.log("ready on " + child.pid);';
    const server = serve(`process.on("SIGTERM", () => {}); ${grandchild} ${untilStopped}`, { stopMsMax: 100 });
    const pid = Number((await server.ready)[1]);
    expect(isRunning(pid)).toBe(true);
    await server.stop();
    expect(await server.ended).toBe("was ended by SIGKILL");
    await expect.poll(() => isRunning(pid), { timeout: 5_000 }).toBe(false);
  });

  test("that ends before it is ready says how, and what it printed", async () => {
    const server = serve('console.log("no model"); process.exitCode = 3;');
    await expect(server.ready).rejects.toThrow("the server ended with exit status 3 before it was ready. It said:\nno model");
  });

  test("that is never ready is given up", async () => {
    const server = serve(untilStopped, { readyMsMax: 50 });
    await expect(server.ready).rejects.toThrow(/was not ready after 0.05 s/);
    await server.stop();
  });
});

describe("ports", () => {
  const listen = (host: string): Promise<[server: Server, port: number]> =>
    new Promise((resolve) => {
      const server = createServer().listen(0, host, () => resolve([server, (server.address() as { port: number }).port]));
    });

  test("one that is taken is named, with the flag that chooses another", async () => {
    const [server, port] = await listen("127.0.0.1");
    await expect(claimPort(port, "the edge", "--port")).rejects.toThrow(
      `port ${port}, for the edge, is in use: stop what listens there, or choose another with --port PORT`,
    );
    await new Promise((resolve) => server.close(resolve));
    expect(await claimPort(port, "the edge", "--port")).toBe(port);
  });

  test("0 gives one that is free", async () => {
    expect(await claimPort(0, "the edge", "--port")).toBeGreaterThan(0);
  });
});

describe("npm start's flags", () => {
  test("are read into options, and what is not given is left out", () => {
    expect(parseStartFlags([])).toEqual({});
    const flags = ["--port", "1", "--origin-port=2", "--kv-memory", "2GiB", "--inference", "simulated", "--model", "hf:a/b/c"];
    expect(parseStartFlags(flags)).toMatchObject({ port: 1, originPort: 2, kvMemory: "2GiB", inference: "simulated", model: "hf:a/b/c" });
  });

  test("that are unknown or wrong are refused by name", () => {
    expect(() => parseStartFlags(["--prot", "1"])).toThrow(/--prot[\s\S]*npm start takes, behind --: --port --origin-port/);
    expect(() => parseStartFlags(["--port", "65536"])).toThrow("--port 65536 is not a port");
    expect(() => parseStartFlags(["--port", "http"])).toThrow("--port http is not a port");
    expect(() => parseStartFlags(["--inference", "fake"])).toThrow("--inference fake is neither native nor simulated");
    expect(() => parseStartFlags(["model.gguf"])).toThrow(/model\.gguf/);
  });
});
