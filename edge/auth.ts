/** Who asks for a ticket, from the customer's JWT: EdDSA or HS256, with the one key configured for each. */
import { decodeProtectedHeader, errors, type JWTPayload, jwtVerify } from "jose";
import type { SessionLimits } from "../shared/assertion.js";
import { type ClassName, classNames, isClassName } from "../shared/classes.js";
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import type { Bindings } from "./bindings.js";
import { customerPublicKey, customerSecret, unconfigured } from "./keys.js";
import { edgeLimits, sessionDefaults } from "./limits.js";

/** Whom a session belongs to and what it may do. */
export interface Principal {
  user: string;
  tenant: string;
  class: ClassName;
  limits: SessionLimits;
}

/**
 * @param authorization the request's header, if it has one.
 * @throws MillraceError `credential_missing`, `credential_invalid` or `edge_unconfigured`.
 */
export async function authenticate(authorization: string | null, bindings: Bindings): Promise<Principal> {
  if (authorization === null) return anonymous(bindings);
  const jwt = /^Bearer ([\w-]+\.[\w-]+\.[\w-]+)$/i.exec(authorization)?.[1];
  if (!jwt || jwt.length > edgeLimits.tokenBytesMax)
    throw invalid(`the authorization header is not "Bearer" and a JWT of at most ${edgeLimits.tokenBytesMax} bytes`);
  return principalOf(await verify(jwt, bindings));
}

/** Nobody's session. Each ticket is a user of its own, so that strangers share nothing but the tenant. */
function anonymous(bindings: Bindings): Principal {
  const tenant = bindings.ANONYMOUS_TENANT;
  if (!tenant)
    throw new MillraceError(
      "credential_missing",
      "a ticket needs a JWT: send it as authorization: Bearer (this edge admits nobody anonymously)",
    );
  return { user: `anonymous-${crypto.randomUUID()}`, tenant, class: "chat", limits: { ...sessionDefaults } };
}

async function verify(jwt: string, bindings: Bindings): Promise<JWTPayload> {
  const options = { requiredClaims: ["exp"], clockTolerance: limits.clockSkewS };
  try {
    const { key, algorithm } = await keyFor(decodeProtectedHeader(jwt).alg, bindings);
    return (await jwtVerify(jwt, key, { ...options, algorithms: [algorithm] })).payload;
  } catch (error) {
    if (error instanceof errors.JOSEError || error instanceof TypeError) throw invalid(error.message);
    throw error;
  }
}

/** The algorithm is the configured key's, never the token's choice: a public key must not pass for a shared secret. */
async function keyFor(alg: string | undefined, bindings: Bindings): Promise<{ key: CryptoKey; algorithm: string }> {
  const { CUSTOMER_JWT_PUBLIC_KEY: publicKey, CUSTOMER_JWT_SECRET: secret } = bindings;
  if (!publicKey && !secret) throw unconfigured("neither CUSTOMER_JWT_PUBLIC_KEY nor CUSTOMER_JWT_SECRET is set, so no JWT can be checked");
  if (alg === "EdDSA" && publicKey) return { key: await customerPublicKey(bindings), algorithm: alg };
  if (alg === "HS256" && secret) return { key: await customerSecret(bindings), algorithm: alg };
  const taken = [publicKey ? "EdDSA" : "", secret ? "HS256" : ""].filter(Boolean).join(" and ");
  throw invalid(`its alg is ${shown(alg)}; this edge takes ${taken}`);
}

function principalOf(payload: JWTPayload): Principal {
  const { sub, tenant } = payload;
  if (!isName(sub)) throw invalid(`its sub is ${shown(sub)}, not a text of 1 to 256 characters`);
  if (!isName(tenant)) throw invalid(`its tenant is ${shown(tenant)}, not a text of 1 to 256 characters`);
  const className = payload.class ?? "chat";
  if (!isClassName(className)) throw invalid(`its class is ${shown(className)}, not one of ${classNames.join(", ")}`);
  return { user: sub, tenant, class: className, limits: limitsOf(payload.limits) };
}

/** A JWT may lower the limits, not raise them. */
function limitsOf(value: unknown): SessionLimits {
  const given = (value ?? {}) as Partial<Record<keyof SessionLimits, unknown>>;
  const lowered: SessionLimits = { ...sessionDefaults };
  for (const name of Object.keys(sessionDefaults) as (keyof SessionLimits)[]) {
    const limit = given[name];
    if (limit === undefined) continue;
    if (!Number.isSafeInteger(limit) || (limit as number) < 1)
      throw invalid(`its limits.${name} is ${shown(limit)}, not an integer from 1`);
    lowered[name] = Math.min(sessionDefaults[name], limit as number);
  }
  return lowered;
}

function invalid(why: string): MillraceError {
  return new MillraceError("credential_invalid", `the JWT was refused: ${why}`);
}

function isName(value: unknown): value is string {
  return typeof value === "string" && value.length >= 1 && value.length <= 256;
}

function shown(value: unknown): string {
  return JSON.stringify(value)?.slice(0, 80) ?? "missing";
}
