/** What the edge signs: three kinds of JWS of one key. Their `typ` tells them apart, so that none passes for another. */
import { errors, type JWTPayload, jwtVerify, SignJWT } from "jose";
import { assertionIssuer, assertionType } from "../shared/assertion.js";
import type { MillraceError } from "../shared/errors.js";
import type { SigningKeys } from "./keys.js";

const algorithm = "EdDSA";

export const jwsType = {
  /** Begins a session. */
  ticket: "millrace-ticket+jwt",
  /** Opens a session's later sockets. */
  resume: "millrace-resume+jwt",
  /** Tells an origin whose socket it is given. */
  assertion: assertionType,
} as const;

export type JwsType = (typeof jwsType)[keyof typeof jwsType];

/** What is said of a text that is refused. */
export interface Refusals {
  expired(): MillraceError;
  /** @param why a phrase without any part of the text. */
  invalid(why: string): MillraceError;
}

/** @param claims beside the issuer; those that are undefined are left out. */
export function signJws(type: JwsType, claims: Record<string, unknown>, keys: SigningKeys): Promise<string> {
  return new SignJWT({ iss: assertionIssuer, ...claims }).setProtectedHeader({ alg: algorithm, typ: type }).sign(keys.sign);
}

/** The claims of a JWS that this edge signed as one of `type` and that has not expired. @throws MillraceError one of `refusals`. */
export async function verifyJws(type: JwsType, text: string, keys: SigningKeys, refusals: Refusals): Promise<JWTPayload> {
  try {
    const options = { typ: type, issuer: assertionIssuer, algorithms: [algorithm], requiredClaims: ["exp"] };
    return (await jwtVerify(text, keys.verify, options)).payload;
  } catch (error) {
    if (error instanceof errors.JWTExpired) throw refusals.expired();
    if (error instanceof errors.JOSEError || error instanceof TypeError) throw refusals.invalid(error.message);
    throw error;
  }
}

export function nowS(): number {
  return Math.floor(Date.now() / 1_000);
}
