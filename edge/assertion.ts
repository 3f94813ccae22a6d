/** Assertions: the edge's word to one origin, which reads it at once, on whose socket this is and what they may do. */
import type { AssertionClaims } from "../shared/assertion.js";
import { limits } from "../shared/limits.js";
import type { UpgradeTimings } from "../shared/protocol.js";
import { jwsType, nowS, signJws } from "./jws.js";
import type { SigningKeys } from "./keys.js";
import { edgeLimits } from "./limits.js";
import type { Approach } from "./origins/choose.js";
import { makeResumeToken } from "./resume.js";
import type { Session } from "./session.js";

/** Every claim but the issuer is to be named, if only to say that there is none. */
type Claims = { [Name in Exclude<keyof AssertionClaims, "iss">]: AssertionClaims[Name] | undefined };

/**
 * An origin whose run is not known gets no resume token: nobody could say later whether that run is dead.
 * @param upgrade where the upgrade's time went until now.
 */
export async function signAssertion(session: Session, approach: Approach, upgrade: UpgradeTimings, keys: SigningKeys): Promise<string> {
  const { principal, expiresAt } = session;
  const { origin, epoch, dead, returning } = approach;
  const iat = nowS();
  const claims: Claims = {
    aud: origin.name,
    sub: principal.user,
    tenant: principal.tenant,
    class: principal.class,
    limits: principal.limits,
    epoch,
    dead,
    returning,
    resume: epoch === undefined ? undefined : await makeResumeToken(session, { origin: origin.name, epoch }, keys),
    sessionExp: expiresAt,
    upgrade,
    iat,
    exp: iat + limits.assertionLifeS,
    jti: crypto.randomUUID(),
  };
  const assertion = await signJws(jwsType.assertion, claims, keys);
  if (assertion.length <= edgeLimits.assertionBytesMax) return assertion;
  // A session that cannot be resumed is better than a socket that cannot be opened.
  return signJws(jwsType.assertion, { ...claims, resume: undefined }, keys);
}
