/** A client in another language, written from PROTOCOL.md alone, against the real edge and origin. */
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Stack, startStack } from "../support/stack.js";

const run = promisify(execFile);
const client = fileURLToPath(new URL("../python/client.py", import.meta.url));
const packages = ["websockets==13.1", "msgpack==1.1.0"];
const folder = mkdtempSync(join(tmpdir(), "millrace-python-"));
let stack: Stack;

beforeAll(async () => {
  const install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--target", folder, ...packages];
  const originArgs = ["--simulated-rate", "200", "--simulated-answer", "1000"];
  [stack] = await Promise.all([startStack({ originArgs }), run("python3", install)]);
}, 120_000);

afterAll(async () => {
  await stack?.stop();
  rmSync(folder, { recursive: true, force: true });
});

// What the specification says is enough to complete, resume and truncate answers.
test("a client in Python completes, resumes and truncates", async () => {
  const { stdout } = await run("python3", [client, stack.edgeUrl], { env: { ...process.env, PYTHONPATH: folder }, timeout: 60_000 });
  const steps = stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { step: string; tokens: number; had?: number; heard?: number });
  expect(steps).toMatchObject([
    { step: "complete", tokens: 60 },
    { step: "resume", tokens: 60 },
    { step: "truncate", tokens: 5 },
  ]);
  expect(steps[1]?.had).toBeGreaterThanOrEqual(10);
  expect(steps[1]?.had).toBeLessThan(60);
}, 90_000);
