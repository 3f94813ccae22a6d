/**
 * Keys for development, made on first start into the ignored folder `.dev/`: the edge's bindings for `wrangler dev --env-file`, and
 * the public half for the origin's `--edge-key`. Run as a program it makes them and prints where they are.
 */
import { generateKeyPairSync } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

export interface DevKeys {
  /** Path of the edge's bindings, as a dotenv file. */
  edgeEnv: string;
  /** Path of the edge's public key, as a JWK. */
  edgePublicJwk: string;
}

export interface DevKeyOptions {
  /** Port of the development origin on 127.0.0.1. */
  originPort?: number;
  originName?: string;
}

export interface EdgeKeyPair {
  privateJwk: object;
  publicJwk: object;
}

export function makeEdgeKeyPair(): EdgeKeyPair {
  const { privateKey } = generateKeyPairSync("ed25519");
  const { kty, crv, x, d } = privateKey.export({ format: "jwk" });
  return { privateJwk: { kty, crv, alg: "EdDSA", x, d }, publicJwk: { kty, crv, alg: "EdDSA", x } };
}

/**
 * Makes the keys unless they are there. The key stays what it was; where the origin is, is written anew when it has moved.
 * @param root the repository's folder.
 */
export function ensureDevKeys(root: string, { originPort = 9101, originName = "origin-1" }: DevKeyOptions = {}): DevKeys {
  const folder = join(root, ".dev");
  const paths: DevKeys = { edgeEnv: join(folder, "edge.env"), edgePublicJwk: join(folder, "edge-public.jwk.json") };
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const { privateJwk, publicJwk } = existingKeyPair(paths.edgeEnv) ?? makeEdgeKeyPair();
  const bindings = {
    EDGE_SIGNING_KEY: JSON.stringify(privateJwk),
    ORIGINS: JSON.stringify([{ name: originName, url: `http://127.0.0.1:${originPort}` }]),
    ANONYMOUS_TENANT: "dev",
  };
  writePrivately(paths.edgeEnv, dotenvOf(bindings));
  writePrivately(paths.edgePublicJwk, `${JSON.stringify(publicJwk)}\n`);
  return paths;
}

/** Single quotes keep a dotenv reader from touching JSON's double ones. */
export function dotenvOf(bindings: Record<string, string>): string {
  return Object.entries(bindings)
    .map(([name, value]) => `${name}='${value}'\n`)
    .join("");
}

function existingKeyPair(edgeEnv: string): EdgeKeyPair | undefined {
  if (!existsSync(edgeEnv)) return undefined;
  const text = /^EDGE_SIGNING_KEY='(.*)'$/m.exec(readFileSync(edgeEnv, "utf8"))?.[1];
  if (!text) return undefined;
  const { d: _, ...publicJwk } = JSON.parse(text) as { d: string };
  return { privateJwk: JSON.parse(text) as object, publicJwk };
}

/** Only this user may read it, and whoever reads it sees all of it: a whole file takes the old one's place. */
function writePrivately(path: string, content: string): void {
  if (existsSync(path) && readFileSync(path, "utf8") === content) {
    chmodSync(path, 0o600);
    return;
  }
  const temporary = `${path}.${process.pid}.new`;
  writeFileSync(temporary, content, { mode: 0o600 });
  renameSync(temporary, path);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const paths = ensureDevKeys(resolve(import.meta.dirname, ".."));
  console.log(`the edge's bindings: ${paths.edgeEnv}\nits public key: ${paths.edgePublicJwk}`);
}
