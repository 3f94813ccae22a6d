import { createPrivateKey, createPublicKey, type JsonWebKeyInput } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseEnv } from "node:util";
import { afterEach, beforeEach, expect, test } from "vitest";
import { ensureDevKeys } from "../../scripts/dev-keys.js";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "millrace-keys-"));
});
afterEach(() => rmSync(root, { recursive: true }));

test("the first start makes a pair of keys that only this user may read, and leaves nothing else behind", () => {
  const { edgeEnv, edgePublicJwk } = ensureDevKeys(root);
  for (const path of [edgeEnv, edgePublicJwk]) expect(statSync(path).mode & 0o777).toBe(0o600);
  expect(readdirSync(join(root, ".dev")).sort()).toEqual(["edge-public.jwk.json", "edge.env"]);
  const bindings = parseEnv(readFileSync(edgeEnv, "utf8"));
  const key = (text: string | undefined) => ({ key: JSON.parse(text ?? ""), format: "jwk" }) as JsonWebKeyInput;
  const published = createPublicKey(key(readFileSync(edgePublicJwk, "utf8")));
  expect(createPublicKey(createPrivateKey(key(bindings.EDGE_SIGNING_KEY))).equals(published)).toBe(true);
  expect(readFileSync(edgePublicJwk, "utf8")).not.toContain('"d"');
  expect(JSON.parse(bindings.ORIGINS ?? "")).toEqual([{ name: "origin-1", url: "http://127.0.0.1:9101" }]);
  expect(bindings.ANONYMOUS_TENANT).toBe("dev");
});

test("later starts keep the key, and follow the origin to another port", () => {
  const { edgeEnv } = ensureDevKeys(root);
  const before = parseEnv(readFileSync(edgeEnv, "utf8"));
  ensureDevKeys(root, { originPort: 9201 });
  const after = parseEnv(readFileSync(edgeEnv, "utf8"));
  expect(after.EDGE_SIGNING_KEY).toBe(before.EDGE_SIGNING_KEY);
  expect(JSON.parse(after.ORIGINS ?? "")).toEqual([{ name: "origin-1", url: "http://127.0.0.1:9201" }]);
});
