/** The origin as a process: what it prints, how it stops, and what it says when it cannot start. */
import { type ChildProcess, spawn } from "node:child_process";
import { copyFileSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, expect, test } from "vitest";
import { defaultModelPath } from "../../scripts/setup/model.js";
import { Op } from "../../shared/protocol.js";
import { claims, edge, SocketClient, sign, withDeadline } from "./support.js";

const folder = mkdtempSync(join(tmpdir(), "millrace-main-"));
const key = join(folder, "edge.jwk.json");
writeFileSync(key, JSON.stringify(edge.publicKey.export({ format: "jwk" })));
afterAll(() => rmSync(folder, { recursive: true }));

const running: ChildProcess[] = [];
afterEach(() => {
  for (const child of running.splice(0)) child.kill("SIGKILL");
});

interface Started {
  child: ChildProcess;
  /** Resolves to the first line on stdout. */
  line: Promise<string>;
  /** Resolves when the process has ended. */
  exit: Promise<{ code: number | null; stderr: string }>;
}

function start(...args: string[]): Started {
  const root = fileURLToPath(new URL("../..", import.meta.url));
  const child = spawn(process.execPath, ["--import", "tsx", "origin/main.ts", "--edge-key", key, "--port", "0", ...args], { cwd: root });
  running.push(child);
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (chunk) => {
    stderr += chunk;
  });
  const exit = new Promise<{ code: number | null; stderr: string }>((resolve) => child.on("close", (code) => resolve({ code, stderr })));
  const line = new Promise<string>((resolve) => child.stdout.setEncoding("utf8").once("data", (chunk: string) => resolve(chunk.trimEnd())));
  return { child, line: withDeadline(line, "the ready line", 30_000), exit: withDeadline(exit, "the end of the process", 30_000) };
}

const portOf = (line: string): number => Number(/:(\d+) /.exec(line)?.[1]);
const word = (): Promise<string> => sign(claims({ aud: "origin-1" }));

test("it says when it is ready and that it is simulated, finishes what runs on SIGTERM, and exits 0", async () => {
  const origin = start("--inference", "simulated", "--simulated-rate", "200", "--simulated-answer", "60");
  const line = await origin.line;
  expect(line).toMatch(/^origin origin-1 ready on http:\/\/127\.0\.0\.1:\d+ \(simulated, simulated, a clock\)$/);
  const client = await SocketClient.connect(portOf(line), await word());
  client.send([Op.START, 1, [["user", "hello"]], {}]);
  await client.nextOf(Op.TOKENS, 1);
  origin.child.kill("SIGTERM");
  const [, , seq, reason] = await client.nextOf(Op.DONE, 1);
  expect([seq, reason]).toEqual([60, "stop"]);
  expect(await client.end()).toMatchObject({ code: "draining", close: { code: 4_503 } });
  const { code, stderr } = await origin.exit;
  expect([code, stderr]).toEqual([0, expect.stringMatching(/simulated inference: no model answers[\s\S]*SIGTERM: draining/)]);
});

test("at the drain's deadline it hands off what runs, and exits 0", async () => {
  const origin = start("--inference", "simulated", "--simulated-answer", "8000", "--drain-ms", "50");
  const client = await SocketClient.connect(portOf(await origin.line), await word());
  client.send([Op.START, 1, [["user", "hello"]], {}]);
  await client.nextOf(Op.TOKENS, 1);
  origin.child.kill("SIGINT");
  expect((await client.nextOf(Op.HANDOFF, 1))[2]).toBeGreaterThan(0);
  expect((await origin.exit).code).toBe(0);
});

test("a port in use is named, with how to choose another", async () => {
  const first = start("--inference", "simulated");
  const port = portOf(await first.line);
  const { code, stderr } = await start("--inference", "simulated", "--port", String(port)).exit;
  expect([code, stderr]).toEqual([1, expect.stringContaining(`port ${port} on 127.0.0.1 cannot be had`)]);
  expect(stderr).toContain("--port N");
});

test.each([
  ["an unknown flag", ["--speed", "9"], /ConfigError: Unknown option '--speed'/],
  ["a model that is not there", ["--model", "/nowhere/model.gguf"], /\/nowhere\/model\.gguf/],
])("%s ends it with 1 and a sentence", async (_, args, sentence) => {
  const { code, stderr } = await start(...args).exit;
  expect([code, stderr]).toEqual([1, expect.stringMatching(sentence)]);
  expect(stderr).not.toMatch(/\n\s+at /);
});

test("a GGUF cut in half ends it with 1 and a sentence", async () => {
  const half = join(folder, "half.gguf");
  copyFileSync(defaultModelPath(), half);
  truncateSync(half, 49_000_000);
  const { code, stderr } = await start("--model", half).exit;
  expect([code, stderr]).toEqual([1, expect.stringMatching(/EngineError: .*half\.gguf/)]);
});
