import { createHash, randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { fetchFromHub, parseSpec } from "../../scripts/setup/hub.js";
import { Progress } from "../../scripts/setup/progress.js";
import { SmallHub } from "../support/smallHub.js";

const spec = "hf:owner/repo/folder/model.gguf";
const key = "owner/repo/folder/model.gguf";
const content = randomBytes(3_000_000);
let hub: SmallHub;
let cache: string;

beforeEach(async () => {
  hub = await SmallHub.start();
  cache = mkdtempSync(join(tmpdir(), "millrace-hub-"));
  process.env.HF_ENDPOINT = hub.url;
  delete process.env.HF_TOKEN;
});

afterEach(async () => {
  await hub.stop();
  rmSync(cache, { recursive: true });
  delete process.env.HF_ENDPOINT;
  delete process.env.HF_TOKEN;
});

const get = (what = spec): Promise<string> => fetchFromHub(what, cache, new Progress({ write: () => {} }).begin("model", ""));
const target = (): string => join(cache, "hub", key);
const partials = (): string[] => readdirSync(dirname(target())).filter((name) => name.endsWith(".partial"));

test("a file arrives whole, and the second time the hub is not asked", async () => {
  hub.files.set(key, { content });
  expect(await get()).toBe(target());
  expect(readFileSync(target()).equals(content)).toBe(true);
  expect(partials()).toEqual([]);
  const asked = hub.seen.length;
  expect(await get()).toBe(target());
  expect(hub.seen.length).toBe(asked);
});

test("a transfer that breaks off twice goes on where it stopped", async () => {
  hub.files.set(key, { content });
  hub.breakOff = { afterBytes: 1_000_000, times: 2 };
  await get();
  expect(readFileSync(target()).equals(content)).toBe(true);
  const [first, second, third] = hub.transfers as [number, number, number];
  expect(hub.transfers).toHaveLength(3);
  expect(first).toBe(0);
  expect(second).toBeGreaterThan(0);
  expect(third).toBeGreaterThan(second);
});

test("a new run continues what an earlier one left behind", async () => {
  hub.files.set(key, { content });
  hub.breakOff = { afterBytes: 200_000, times: 100 };
  await expect(get()).rejects.toThrow(/could not be fetched/);
  expect(existsSync(target())).toBe(false);
  expect(partials()).toHaveLength(1);
  const left = readFileSync(join(dirname(target()), partials()[0] as string)).length;
  expect(left).toBeGreaterThan(0);
  hub.breakOff.times = 0;
  hub.seen.length = 0;
  await get();
  expect(hub.transfers).toEqual([left]);
  expect(readFileSync(target()).equals(content)).toBe(true);
});

test("what is left of an older version of the file is not continued", async () => {
  hub.files.set(key, { content: randomBytes(2_000_000) });
  hub.breakOff = { afterBytes: 100_000, times: 100 };
  await expect(get()).rejects.toThrow();
  hub.breakOff.times = 0;
  hub.files.set(key, { content });
  hub.seen.length = 0;
  await get();
  expect(hub.transfers).toEqual([0]);
  expect(readFileSync(target()).equals(content)).toBe(true);
  expect(partials()).toEqual([]);
});

test("a wrong hash is refused with both hashes, and nothing is kept", async () => {
  const claimed = "ab".repeat(32);
  hub.files.set(key, { content, etag: `"${claimed}"` });
  const found = createHash("sha256").update(content).digest("hex");
  await expect(get()).rejects.toThrow(new RegExp(`${found}.*${claimed}`));
  expect(existsSync(target())).toBe(false);
  expect(partials()).toEqual([]);
});

test("a small file is checked against Git's hash", async () => {
  const small = Buffer.from("not large enough for LFS\n");
  const etag = createHash("sha1").update(`blob ${small.length}\0`).update(small).digest("hex");
  hub.files.set(key, { content: small, etag: `"${etag}"` });
  expect(readFileSync(await get()).equals(small)).toBe(true);
  rmSync(cache, { recursive: true });
  hub.files.set(key, { content: Buffer.from("something else\n"), etag: `"${etag}"` });
  await expect(get()).rejects.toThrow(/sha1 .* but the hub says/);
});

test("an etag that is no hash is refused before anything is fetched", async () => {
  hub.files.set(key, { content, etag: '"v1"' });
  await expect(get()).rejects.toThrow(/is no hash/);
  expect(hub.transfers).toEqual([]);
});

test("a 401 says to set HF_TOKEN, and the token travels when it is set", async () => {
  hub.files.set(key, { content, token: "hf_right" });
  await expect(get()).rejects.toThrow(/refuses \(401\).*set HF_TOKEN/);
  process.env.HF_TOKEN = "hf_wrong";
  await expect(get()).rejects.toThrow(/refuses \(401\).*token in HF_TOKEN does not open it/);
  process.env.HF_TOKEN = "hf_right";
  expect(readFileSync(await get()).equals(content)).toBe(true);
  expect(hub.seen.at(-1)?.authorization).toBe("Bearer hf_right");
});

test("a file or repository that is not there is named", async () => {
  hub.files.set(key, { content });
  await expect(get("hf:owner/repo/other.gguf")).rejects.toThrow(/owner\/repo has no file other\.gguf.*404/);
  await expect(get("hf:owner/none/model.gguf")).rejects.toThrow(/no repository owner\/none.*404/);
});

test("a hub that cannot be reached is named", async () => {
  process.env.HF_ENDPOINT = "http://127.0.0.1:1";
  await expect(get()).rejects.toThrow(/could not be fetched from http:\/\/127\.0\.0\.1:1: /);
});

test("a spec names owner, repository and file, and no way out of the cache", () => {
  expect(parseSpec("hf:a/b/c/d.gguf")).toEqual({ repo: "a/b", file: "c/d.gguf" });
  for (const bad of ["hf:", "hf:a/b", "hf:a//c", "hf:../b/c", "hf:a/b/../c", "hf:a/b/c d", "hf:a/b/"])
    expect(() => parseSpec(bad)).toThrow(/is not hf:OWNER\/REPO\/FILE/);
});
