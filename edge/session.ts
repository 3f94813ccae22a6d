/** A session: whose it is, from which page and until when. A ticket begins it, and each socket's resume token carries it on. */
import type { JWTPayload } from "jose";
import { isClassName } from "../shared/classes.js";
import { MillraceError } from "../shared/errors.js";
import type { Principal } from "./auth.js";

/** One run of an origin. */
export interface Run {
  /** The origin's name. */
  origin: string;
  epoch: string;
}

export interface Session {
  principal: Principal;
  /** The Origin of the page it belongs to; null for an agent, which has none. */
  page: string | null;
  /** When it ends, in seconds since the epoch. No later socket moves it. */
  expiresAt: number;
  /** Where its earlier socket was; undefined for the first. */
  home?: Run;
}

/** Claims that say whose a ticket or resume token is. */
export function claimsOf({ user, tenant, class: className, limits }: Principal, page: string | null): JWTPayload {
  return { sub: user, tenant, class: className, limits, page };
}

/** Reads them again. Undefined where one is missing: whoever holds the key wrote them, but another version of this Worker may have. */
export function principalIn({ sub, tenant, class: className, limits }: JWTPayload): Principal | undefined {
  if (typeof sub !== "string" || typeof tenant !== "string" || !isClassName(className)) return undefined;
  if (typeof limits !== "object" || limits === null) return undefined;
  return { user: sub, tenant, class: className, limits: limits as Principal["limits"] };
}

/**
 * @param what was brought. @param boundTo its claim `page`. @param page the Origin header of the upgrade, null where it has none.
 * @throws MillraceError `page_origin_refused`.
 */
export function requirePage(what: string, boundTo: unknown, page: string | null): void {
  if (boundTo !== page)
    throw new MillraceError("page_origin_refused", `the ${what} was issued to ${bearer(boundTo)}, but ${bearer(page)} brought it`);
}

function bearer(page: unknown): string {
  return page === null ? "an agent without an Origin" : `a page of ${JSON.stringify(page)?.slice(0, 80)}`;
}
