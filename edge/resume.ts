/**
 * Resume tokens: what opens a session's later sockets, without a ticket. Each names the run of the origin whose HELLO carried it, so that
 * the socket is led back there, or, where that run is dead, the edge can say so. Like a ticket it is the edge's word to itself; a
 * secret of the client's, since whoever has it, and can send its page's Origin, has the session.
 */
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import { jwsType, type Refusals, signJws, verifyJws } from "./jws.js";
import type { SigningKeys } from "./keys.js";
import { claimsOf, principalIn, type Run, requirePage, type Session } from "./session.js";

/**
 * The token for sockets that shall come back to `run`; it expires with the session.
 * @returns undefined where it would be longer than limits.resumeTokenBytesMax, which takes names of hundreds of characters beyond ASCII:
 * such a session opens its later sockets by ticket.
 */
export async function makeResumeToken(session: Session, run: Run, keys: SigningKeys): Promise<string | undefined> {
  const { origin, epoch } = run;
  const claims = { ...claimsOf(session.principal, session.page), origin, epoch, exp: session.expiresAt };
  const token = await signJws(jwsType.resume, claims, keys);
  return token.length <= limits.resumeTokenBytesMax ? token : undefined;
}

/**
 * The session that a token carries on.
 * @param page the Origin header of the upgrade, null where it has none.
 * @throws MillraceError `resume_invalid` or `page_origin_refused`.
 */
export async function redeemResumeToken(token: string, page: string | null, keys: SigningKeys): Promise<Session> {
  if (token.length > limits.resumeTokenBytesMax)
    throw invalid(`the resume token has ${token.length} bytes, over ${limits.resumeTokenBytesMax}`);
  const claims = await verifyJws(jwsType.resume, token, keys, refusals);
  requirePage("resume token", claims.page, page);
  const { origin, epoch, exp } = claims;
  const principal = principalIn(claims);
  if (!principal || typeof origin !== "string" || typeof epoch !== "string" || exp === undefined)
    throw invalid("the resume token is of another version of this edge: fetch a ticket");
  return { principal, page, expiresAt: exp, home: { origin, epoch } };
}

const refusals: Refusals = {
  expired: () => invalid(`the session is over: it began more than ${limits.sessionLifeS / 3_600} h ago; fetch a ticket`),
  invalid: (why) => invalid(`the resume token is none of this edge's: ${why}; fetch a ticket`),
};

function invalid(why: string): MillraceError {
  return new MillraceError("resume_invalid", why);
}
