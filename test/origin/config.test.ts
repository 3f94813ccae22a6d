/** Flags and environment: what is taken, and with which sentence the rest is refused. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { ConfigError, readConfig } from "../../origin/config.js";
import { ServiceTerms } from "../../origin/terms.js";
import { edge } from "./support.js";

const folder = mkdtempSync(join(tmpdir(), "millrace-config-"));
const key = join(folder, "edge.jwk.json");
writeFileSync(key, JSON.stringify(edge.publicKey.export({ format: "jwk" })));
afterAll(() => rmSync(folder, { recursive: true }));

test("the defaults are those of the documentation", () => {
  const { edgeKey, ...config } = readConfig(["--edge-key", key], { MILLRACE_CACHE: "/cache" });
  expect(edgeKey.equals(edge.publicKey)).toBe(true);
  expect(config).toEqual({
    host: "127.0.0.1",
    port: 9_101,
    name: "origin-1",
    inference: "native",
    model: "/cache/SmolLM2-135M-Instruct.Q4_1.gguf",
    threads: undefined,
    contextTokens: undefined,
    kvMemoryBytes: undefined,
    slots: undefined,
    kvType: undefined,
    kernels: undefined,
    deterministic: false,
    precision: undefined,
    terms: new ServiceTerms(),
    drainMs: 20_000,
    simulatedTokensPerSecond: 50,
    simulatedAnswerTokens: 256,
    simulatedModel: undefined,
    simulatedStamps: false,
  });
});

test("each flag has its variable, and the flag wins", () => {
  const env = {
    MILLRACE_EDGE_KEY: key,
    MILLRACE_PORT: "1",
    MILLRACE_KV_MEMORY: "2GiB",
    MILLRACE_INFERENCE: "simulated",
    MILLRACE_SLOTS: "3",
  };
  expect(readConfig(["--port", "2", "--ctx=4096"], env)).toMatchObject({
    port: 2,
    kvMemoryBytes: 2 ** 31,
    inference: "simulated",
    slots: 3,
    contextTokens: 4_096,
  });
});

test.each([
  ["1048576", 1_048_576],
  ["512MiB", 512 * 2 ** 20],
  ["1.5gib", 1.5 * 2 ** 30],
])("--kv-memory %s", (text, bytes) => {
  expect(readConfig(["--edge-key", key, "--kv-memory", text], {}).kvMemoryBytes).toBe(bytes);
});

test.each([
  [["--port", "70000"], '--port is "70000", not an integer from 0 to 65535'],
  [["--port", "http"], '--port is "http", not an integer'],
  [["--kernels", "gpu"], '--kernels is "gpu", not one of auto, cpu, hopper'],
  [["--threads", "0"], '--threads is "0", not an integer from 1 to 1024'],
  [["--kv-memory", "2GB"], '--kv-memory is "2GB", not bytes such as 1073741824, 512MiB or 2GiB'],
  [["--inference", "magic"], '--inference is "magic", not "native" or "simulated"'],
  [["--name", "a b"], '--name is "a b", not 1 to 64 letters'],
  [["--speed", "9"], "Unknown option '--speed'"],
  [["extra"], "Unexpected argument 'extra'"],
  [["--edge-key", join(folder, "none")], "cannot be used: ENOENT"],
])("%j is refused with a sentence", (args, sentence) => {
  const read = (): unknown => readConfig(["--edge-key", key, ...args], {});
  expect(read).toThrow(ConfigError);
  expect(read).toThrow(sentence);
});

test("--classes reads a file, and says which part of it is wrong", () => {
  const path = join(folder, "classes.json");
  writeFileSync(path, JSON.stringify({ classes: { voice: { ttftMs: 300 } } }));
  const { terms } = readConfig(["--edge-key", key], { MILLRACE_CLASSES: path });
  expect(terms.classes.voice).toEqual({ ttftMs: 300, itlMs: 60, waitMs: 0 });
  writeFileSync(path, "{");
  expect(() => readConfig(["--edge-key", key, "--classes", path], {})).toThrow(
    new RegExp(`^--classes ${path} cannot be used: it is not JSON: `),
  );
  expect(() => readConfig(["--edge-key", key, "--classes", join(folder, "none")], {})).toThrow(/--classes .* cannot be used: ENOENT/);
});

test("without the edge's key nothing starts", () => {
  expect(() => readConfig([], {})).toThrow(/--edge-key is missing/);
});
