/**
 * The edge's signed word on who a connection is and what it may do: an Ed25519 JWS whose payload is this, made with `jose` in the
 * Worker and verified with `node:crypto` at the origin. It travels in the upgrade's `authorization: Bearer` header and lives seconds.
 */
import { type ClassName, isClassName } from "./classes.js";
import { MillraceError } from "./errors.js";
import { limits } from "./limits.js";
import type { UpgradeTimings } from "./protocol.js";

export const assertionIssuer = "millrace-edge";
/** The JWS header's `typ`: a ticket, which the same key signs, can never pass for an assertion. */
export const assertionType = "millrace-assertion+jwt";

export interface AssertionClaims {
  iss: typeof assertionIssuer;
  /** The origin it is meant for. */
  aud: string;
  /** The user, unique in the tenant. */
  sub: string;
  tenant: string;
  class: ClassName;
  limits: SessionLimits;
  /** The run of the origin that the edge takes it for; undefined where it does not know. */
  epoch?: string;
  /** An earlier run, with which the client had its answers: the edge knows that it is dead. */
  dead?: string;
  /** The session was here before, and comes back for what it left. */
  returning?: boolean;
  /** For HELLO: what opens the session's next sockets. */
  resume?: string;
  /** When the session ends, in seconds since the epoch. */
  sessionExp?: number;
  upgrade?: UpgradeTimings;
  /** Seconds since the epoch, as JWT has them. */
  iat: number;
  exp: number;
  jti: string;
}

export interface SessionLimits {
  /** Most streams at once on this connection. */
  streamsMax: number;
  /** Most tokens one START may ask for. */
  tokensMax: number;
}

/**
 * Reads the payload of an assertion whose signature has been verified.
 * @param payload the decoded JSON. @param audience this origin's name. @param nowS seconds since the epoch.
 * @throws MillraceError `assertion_invalid`, saying which claim was wrong.
 */
export function parseAssertion(payload: unknown, audience: string, nowS: number): AssertionClaims {
  if (typeof payload !== "object" || payload === null) throw refused("its payload is not an object");
  const claims = payload as Partial<Record<keyof AssertionClaims, unknown>>;
  if (claims.iss !== assertionIssuer) throw refused(`iss is ${shown(claims.iss)}, not "${assertionIssuer}"`);
  if (claims.aud !== audience) throw refused(`aud is ${shown(claims.aud)}, but this origin is ${shown(audience)}`);
  if (!isName(claims.sub)) throw refused(`sub is ${shown(claims.sub)}, not a text of 1 to 256 characters`);
  if (!isName(claims.tenant)) throw refused(`tenant is ${shown(claims.tenant)}, not a text of 1 to 256 characters`);
  if (!isName(claims.jti)) throw refused(`jti is ${shown(claims.jti)}, not a text of 1 to 256 characters`);
  if (!isClassName(claims.class)) throw refused(`class is ${shown(claims.class)}`);
  const { iat, exp } = claims;
  if (!isSeconds(iat) || !isSeconds(exp)) throw refused("iat or exp is not a time");
  if (exp + limits.clockSkewS <= nowS) throw refused(`it expired ${Math.floor(nowS - exp)} s ago`);
  if (iat - limits.clockSkewS > nowS)
    throw refused(`it was issued ${Math.ceil(iat - nowS)} s in the future: compare the clocks of edge and origin`);
  if (exp - iat > limits.assertionLifeS) throw refused(`it lives ${exp - iat} s, more than ${limits.assertionLifeS}`);
  return {
    iss: assertionIssuer,
    aud: audience,
    sub: claims.sub,
    tenant: claims.tenant,
    class: claims.class,
    limits: parseSessionLimits(claims.limits),
    ...parseSession(claims),
    iat,
    exp,
    jti: claims.jti,
  };
}

/** What an edge that resumes sessions says beside. */
function parseSession(claims: Partial<Record<keyof AssertionClaims, unknown>>): Partial<AssertionClaims> {
  const { epoch, dead, returning, resume, sessionExp, upgrade } = claims;
  const texts = { epoch, dead, resume };
  for (const [name, value] of Object.entries(texts))
    if (value !== undefined && (typeof value !== "string" || value.length > limits.resumeTokenBytesMax))
      throw refused(`${name} is ${shown(value)}, not a text of at most ${limits.resumeTokenBytesMax} characters`);
  if (returning !== undefined && typeof returning !== "boolean") throw refused(`returning is ${shown(returning)}`);
  if (sessionExp !== undefined && !isSeconds(sessionExp)) throw refused(`sessionExp is ${shown(sessionExp)}, not a time`);
  const given = { ...texts, returning, sessionExp, upgrade: parseUpgrade(upgrade) };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
}

function parseUpgrade(value: unknown): UpgradeTimings | undefined {
  if (value === undefined) return undefined;
  const { redeemMs, chooseMs, connectMs } = (value ?? {}) as Partial<UpgradeTimings>;
  if (!isDuration(redeemMs) || !isDuration(chooseMs) || !isDuration(connectMs))
    throw refused("upgrade lacks redeemMs, chooseMs or connectMs");
  return { redeemMs, chooseMs, connectMs };
}

function parseSessionLimits(value: unknown): SessionLimits {
  const { streamsMax, tokensMax } = (value ?? {}) as Partial<SessionLimits>;
  if (!isCount(streamsMax) || !isCount(tokensMax)) throw refused("limits lacks streamsMax or tokensMax");
  return { streamsMax, tokensMax };
}

function refused(why: string): MillraceError {
  return new MillraceError("assertion_invalid", `the edge's assertion was refused: ${why}`);
}

function isName(value: unknown): value is string {
  return typeof value === "string" && value.length >= 1 && value.length <= 256;
}

function isSeconds(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(value) && value > 0;
}

function isDuration(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(value) && value >= 0;
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 1;
}

function shown(value: unknown): string {
  return JSON.stringify(value)?.slice(0, 80) ?? "missing";
}
