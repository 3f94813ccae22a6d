/**
 * Tickets and assertions, both signed with the edge's key and told apart by their `typ`. A ticket is the edge's word to itself, kept by
 * the client for up to 60 s; an assertion is its word to one origin, which reads it at once.
 */
import { errors, type JWTPayload, jwtVerify, SignJWT } from "jose";
import { type AssertionClaims, assertionIssuer, assertionType } from "../shared/assertion.js";
import { isClassName } from "../shared/classes.js";
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import type { Principal } from "./auth.js";
import type { SigningKeys } from "./keys.js";

const ticketType = "millrace-ticket+jwt";
const algorithm = "EdDSA";

export interface Ticket {
  /** The signed text. */
  ticket: string;
  /** Seconds since the epoch. */
  expiresAt: number;
}

/** @param page the Origin of the page it is issued to; null for an agent, which has none. */
export async function issueTicket(principal: Principal, page: string | null, keys: SigningKeys): Promise<Ticket> {
  const issuedAt = nowS();
  const expiresAt = issuedAt + limits.ticketLifeS;
  const ticket = await new SignJWT({ tenant: principal.tenant, class: principal.class, limits: principal.limits, page })
    .setProtectedHeader({ alg: algorithm, typ: ticketType })
    .setIssuer(assertionIssuer)
    .setSubject(principal.user)
    .setIssuedAt(issuedAt)
    .setExpirationTime(expiresAt)
    .setJti(crypto.randomUUID())
    .sign(keys.sign);
  return { ticket, expiresAt };
}

/**
 * @param page the Origin header of the upgrade, null where it has none.
 * @throws MillraceError `ticket_invalid`, `ticket_expired` or `page_origin_refused`.
 */
export async function redeemTicket(ticket: string, page: string | null, keys: SigningKeys): Promise<Principal> {
  const claims = await verifyTicket(ticket, keys);
  if (claims.page !== page)
    throw new MillraceError("page_origin_refused", `the ticket was issued to ${bearer(claims.page)}, but ${bearer(page)} brought it`);
  const { sub, tenant, class: className, limits: sessionLimits } = claims;
  // Whoever holds the key wrote these; a ticket of another version of this Worker may still lack one.
  if (typeof sub !== "string" || typeof tenant !== "string" || !isClassName(className) || typeof sessionLimits !== "object")
    throw new MillraceError("ticket_invalid", "the ticket is of another version of this edge: fetch a new one");
  return { user: sub, tenant, class: className, limits: sessionLimits as Principal["limits"] };
}

/** @param audience the name of the origin it is meant for. */
export function signAssertion(principal: Principal, audience: string, keys: SigningKeys): Promise<string> {
  const issuedAt = nowS();
  const claims: AssertionClaims = {
    iss: assertionIssuer,
    aud: audience,
    sub: principal.user,
    tenant: principal.tenant,
    class: principal.class,
    limits: principal.limits,
    iat: issuedAt,
    exp: issuedAt + limits.assertionLifeS,
    jti: crypto.randomUUID(),
  };
  return new SignJWT({ ...claims }).setProtectedHeader({ alg: algorithm, typ: assertionType }).sign(keys.sign);
}

async function verifyTicket(ticket: string, keys: SigningKeys): Promise<JWTPayload> {
  try {
    const options = { typ: ticketType, issuer: assertionIssuer, algorithms: [algorithm], requiredClaims: ["exp"] };
    return (await jwtVerify(ticket, keys.verify, options)).payload;
  } catch (error) {
    if (error instanceof errors.JWTExpired)
      throw new MillraceError("ticket_expired", `the ticket is older than ${limits.ticketLifeS} s: fetch a new one`);
    if (error instanceof errors.JOSEError || error instanceof TypeError)
      throw new MillraceError("ticket_invalid", `the ticket is none of this edge's: ${error.message}`);
    throw error;
  }
}

function bearer(page: unknown): string {
  return page === null ? "an agent without an Origin" : `a page of ${JSON.stringify(page)?.slice(0, 80)}`;
}

function nowS(): number {
  return Math.floor(Date.now() / 1_000);
}
