/** Tickets: the edge's word to itself, kept by the client for up to 60 s, with which a session begins. */
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import type { Principal } from "./auth.js";
import { jwsType, nowS, type Refusals, signJws, verifyJws } from "./jws.js";
import type { SigningKeys } from "./keys.js";
import { edgeLimits } from "./limits.js";
import { claimsOf, principalIn, requirePage, type Session } from "./session.js";

export interface Ticket {
  /** The signed text. */
  ticket: string;
  /** Seconds since the epoch. */
  expiresAt: number;
}

/** @param page the Origin of the page it is issued to; null for an agent, which has none. */
export async function issueTicket(principal: Principal, page: string | null, keys: SigningKeys): Promise<Ticket> {
  const iat = nowS();
  const exp = iat + limits.ticketLifeS;
  const ticket = await signJws(jwsType.ticket, { ...claimsOf(principal, page), iat, exp, jti: crypto.randomUUID() }, keys);
  return { ticket, expiresAt: exp };
}

/**
 * The session that a ticket begins. Its life counts from the ticket's issue, so that a ticket which opens two sockets gives both one end.
 * @param page the Origin header of the upgrade, null where it has none.
 * @throws MillraceError `ticket_invalid`, `ticket_expired` or `page_origin_refused`.
 */
export async function redeemTicket(ticket: string, page: string | null, keys: SigningKeys): Promise<Session> {
  if (ticket.length > edgeLimits.tokenBytesMax) throw invalid(`the ticket has ${ticket.length} bytes, over ${edgeLimits.tokenBytesMax}`);
  const claims = await verifyJws(jwsType.ticket, ticket, keys, refusals);
  requirePage("ticket", claims.page, page);
  const principal = principalIn(claims);
  if (!principal || typeof claims.iat !== "number") throw invalid("the ticket is of another version of this edge: fetch a new one");
  return { principal, page, expiresAt: claims.iat + limits.sessionLifeS };
}

const refusals: Refusals = {
  expired: () => new MillraceError("ticket_expired", `the ticket is older than ${limits.ticketLifeS} s: fetch a new one`),
  invalid: (why) => invalid(`the ticket is none of this edge's: ${why}`),
};

function invalid(why: string): MillraceError {
  return new MillraceError("ticket_invalid", why);
}
