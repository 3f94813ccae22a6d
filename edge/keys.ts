/** Keys from bindings, imported once an isolate. A key that is missing or unusable is `edge_unconfigured`, which names the binding. */
import { importJWK, type JWK } from "jose";
import { MillraceError } from "../shared/errors.js";
import type { Bindings } from "./bindings.js";
import { edgeLimits } from "./limits.js";

export interface SigningKeys {
  sign: CryptoKey;
  verify: CryptoKey;
}

// The keys themselves are cached, never the promises of them: a promise belongs to the request that made it, and workerd lets no
// other request wait for it.
const cache = new Map<keyof Bindings, { text: string; keys: unknown }>();

/** The edge's own pair. @throws MillraceError `edge_unconfigured` */
export function signingKeys(bindings: Bindings): Promise<SigningKeys> {
  return cached(bindings, "EDGE_SIGNING_KEY", "an Ed25519 private key as a JWK", async (text) => {
    const { kty, crv, x, d } = JSON.parse(text) as JWK;
    if (!d) throw new Error("it has no private part (d)");
    const common = { kty, crv, x } as JWK;
    return { sign: await ed25519({ ...common, d } as JWK), verify: await ed25519(common) };
  });
}

/** The key that customers' EdDSA JWTs are checked with. @throws MillraceError `edge_unconfigured` */
export function customerPublicKey(bindings: Bindings): Promise<CryptoKey> {
  return cached(bindings, "CUSTOMER_JWT_PUBLIC_KEY", "an Ed25519 public key as a JWK", (text) => {
    const { kty, crv, x } = JSON.parse(text) as JWK;
    return ed25519({ kty, crv, x } as JWK);
  });
}

/** The secret that customers' HS256 JWTs are checked with. @throws MillraceError `edge_unconfigured` */
export function customerSecret(bindings: Bindings): Promise<CryptoKey> {
  return cached(bindings, "CUSTOMER_JWT_SECRET", `a secret of at least ${edgeLimits.secretBytesMin} bytes`, async (text) => {
    const bytes = new TextEncoder().encode(text);
    if (bytes.length < edgeLimits.secretBytesMin) throw new Error(`it has ${bytes.length} bytes`);
    return crypto.subtle.importKey("raw", bytes, { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
  });
}

async function cached<Keys>(
  bindings: Bindings,
  name: keyof Bindings,
  expected: string,
  read: (text: string) => Promise<Keys>,
): Promise<Keys> {
  const text = bindings[name];
  if (!text) throw unconfigured(`${name} is not set; it takes ${expected}`);
  const known = cache.get(name);
  if (known?.text === text) return known.keys as Keys;
  let keys: Keys;
  try {
    keys = await read(text);
  } catch (error) {
    // The reason goes to the log alone: a parser's complaint may quote the secret it choked on.
    console.error(`binding ${name} cannot be used: ${error instanceof Error ? error.message : error}`);
    throw unconfigured(`${name} cannot be used; it takes ${expected}`);
  }
  cache.set(name, { text, keys });
  return keys;
}

async function ed25519(jwk: JWK): Promise<CryptoKey> {
  const key = await importJWK(jwk, "EdDSA");
  if (key instanceof Uint8Array) throw new Error("it is not an Ed25519 key");
  return key;
}

export function unconfigured(why: string): MillraceError {
  return new MillraceError("edge_unconfigured", `this edge is not configured: ${why}`);
}
