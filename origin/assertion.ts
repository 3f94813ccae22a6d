/** Verifies the edge's assertion: an Ed25519 JWS in compact form (RFC 7515, RFC 8037), synchronously, within the upgrade. */
import { createPublicKey, type KeyObject, verify } from "node:crypto";
import { type AssertionClaims, assertionType, parseAssertion } from "../shared/assertion.js";
import { MillraceError } from "../shared/errors.js";
import { bounds } from "./bounds.js";

/**
 * @param authorization the header's value, "Bearer " and the JWS. @param audience this origin's name. @param nowS seconds since the epoch.
 * @throws MillraceError `assertion_invalid`, saying what was wrong; never what was in it.
 */
export function verifyAssertion(authorization: string, key: KeyObject, audience: string, nowS: number): AssertionClaims {
  if (authorization === "") throw refused("there is none: this origin is reached through its edge only");
  if (authorization.length > bounds.assertionBytesMax)
    throw refused(`it has ${authorization.length} bytes, over ${bounds.assertionBytesMax}`);
  const [, header, payload, signature] = /^Bearer ([\w-]+)\.([\w-]+)\.([\w-]+)$/i.exec(authorization) ?? [];
  if (!header || !payload || !signature) throw refused("it is not a bearer JWS of three parts");
  const { alg, typ, crit } = (parse(header) ?? {}) as Record<string, unknown>;
  if (alg !== "EdDSA") throw refused("its algorithm is not EdDSA");
  if (typ !== assertionType) throw refused(`its type is not ${assertionType}`);
  if (crit !== undefined) throw refused("it has critical header fields, of which this origin knows none");
  if (!verify(null, Buffer.from(`${header}.${payload}`), key, Buffer.from(signature, "base64url")))
    throw refused("its signature is not that of this origin's edge key");
  return parseAssertion(parse(payload), audience, nowS);
}

/** Reads the edge's public key from the text of a JWK. @throws Error saying what is wrong with it. */
export function readEdgeKey(text: string): KeyObject {
  let jwk: Record<string, unknown>;
  try {
    jwk = JSON.parse(text) as Record<string, unknown>;
  } catch {
    throw new Error("it is not JSON");
  }
  if (jwk?.kty !== "OKP" || jwk.crv !== "Ed25519") throw new Error('it is not an Ed25519 JWK ({"kty":"OKP","crv":"Ed25519","x":...})');
  if (jwk.d !== undefined) throw new Error("it holds the private key (d), which belongs to the edge alone: give the public one");
  return createPublicKey({ key: jwk, format: "jwk" });
}

function parse(part: string): unknown {
  try {
    return JSON.parse(Buffer.from(part, "base64url").toString());
  } catch {
    throw refused("a part of it is not JSON");
  }
}

function refused(why: string): MillraceError {
  return new MillraceError("assertion_invalid", `the edge's assertion was refused: ${why}`);
}
