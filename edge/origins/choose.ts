/**
 * Which origin a socket is opened on. A new session goes to the first that takes it; one that comes back goes to the run that it left,
 * where its answers are, and elsewhere only if that run is known to be dead or the client asks for it. Knows no network: see Means.
 */
import type { AssertionClaims } from "../../shared/assertion.js";
import { type ErrorCode, MillraceError } from "../../shared/errors.js";
import { limits } from "../../shared/limits.js";
import { elsewhere } from "../../shared/protocol.js";
import type { Run } from "../session.js";
import type { Probe } from "./probe.js";
import type { Origin } from "./registry.js";

/** An origin that is tried, and what its assertion says of that. */
export interface Approach {
  origin: Origin;
  /** The run that it is taken for; undefined where no probe ever told. */
  epoch: string | undefined;
  /** The run that the session left, where that is dead. */
  dead?: AssertionClaims["dead"];
  /** The session comes back to the run that it left. */
  returning?: AssertionClaims["returning"];
}

/** What choosing needs of the world. */
export interface Means {
  /** What the origin said of itself a short time ago, or now. */
  probe(origin: Origin): Promise<Probe>;
  probeAfresh(origin: Origin): Promise<Probe>;
  /** Opens a socket. Rejects with a MillraceError that says why the origin did not take it. */
  open(approach: Approach): Promise<Response>;
}

export interface Wish {
  /** Where the session was; undefined for a new one. */
  home: Run | undefined;
  /** It asks for any other origin rather. */
  elsewhere: boolean;
}

/** The 101 response of the origin that took the socket. @throws MillraceError why none did; never `epoch_changed`. */
export function openStream(origins: readonly Origin[], wish: Wish, means: Means): Promise<Response> {
  const { home } = wish;
  if (!home) return openAnywhere(origins, undefined, means);
  const own = origins.find(({ name }) => name === home.origin);
  // An origin is taken out of the list only once it has ended.
  if (!own) return openAnywhere(origins, home.epoch, means);
  const others = origins.filter((origin) => origin !== own);
  if (!wish.elsewhere || others.length === 0) return openAtHome(own, home.epoch, others, means);
  return firstOf([() => openAnywhere(others, undefined, means), () => openAtHome(own, home.epoch, [], means)]);
}

/** Opens at the run that the session left. @param others may be chosen too, once that run is known to be dead. */
async function openAtHome(own: Origin, epoch: string, others: readonly Origin[], means: Means): Promise<Response> {
  let probe = await means.probe(own);
  // A remembered answer may be older than the run that the token names: only one of now can tell that this run is over.
  if (probe.epoch !== epoch) probe = await means.probeAfresh(own);
  if (probe.state !== "unreachable" && probe.epoch === epoch) {
    try {
      return await means.open({ origin: own, epoch, returning: true });
    } catch (error) {
      if (hasCode(error, "origin_unreachable")) throw lost(own);
      if (!hasCode(error, "epoch_changed")) throw error;
      probe = await means.probeAfresh(own);
    }
  }
  if (probe.state === "unreachable" || probe.epoch === epoch) throw lost(own);
  return openAnywhere([own, ...others], epoch, means);
}

/** Opens on the first that takes it: those that say they are ready first, then the others, since a probe may err. */
function openAnywhere(origins: readonly Origin[], dead: string | undefined, means: Means): Promise<Response> {
  async function* ways(): AsyncGenerator<() => Promise<Response>> {
    const others: Approach[] = [];
    for (const origin of origins) {
      const { state, epoch } = await means.probe(origin);
      const approach = { origin, epoch, ...(dead === undefined ? {} : { dead }) };
      if (state === "ready") yield () => openOnRun(approach, means);
      else others.push(approach);
    }
    for (const approach of others) yield () => openOnRun(approach, means);
  }
  return firstOf(ways());
}

/** Opens on an origin; where it is another run by now than it was taken for, asks it which, and tries once more. */
async function openOnRun(approach: Approach, means: Means): Promise<Response> {
  try {
    return await means.open(approach);
  } catch (error) {
    if (!hasCode(error, "epoch_changed")) throw error;
  }
  const { state, epoch } = await means.probeAfresh(approach.origin);
  try {
    if (state !== "unreachable") return await means.open({ ...approach, epoch });
  } catch (error) {
    if (!hasCode(error, "epoch_changed")) throw error;
  }
  throw new MillraceError("origin_unreachable", `origin ${approach.origin.name} is another run than it just said: it may fail at start`);
}

/**
 * The result of the first that succeeds. An origin that cannot now (unreachable, loading, draining, overloaded) is passed over; any other
 * refusal is final, since the next origin would give the same.
 * @throws MillraceError the last refusal, but rather one of an origin that could be reached: it knows more.
 */
async function firstOf(ways: Iterable<() => Promise<Response>> | AsyncIterable<() => Promise<Response>>): Promise<Response> {
  let refusal: MillraceError | undefined;
  for await (const open of ways) {
    try {
      return await open();
    } catch (error) {
      if (!(error instanceof MillraceError) || error.retry !== "later") throw error;
      if (!refusal || error.code !== "origin_unreachable") refusal = error;
    }
  }
  throw refusal;
}

/** Who cannot be reached need not be dead: a second copy of its answers is started only after a wait. */
function lost({ name }: Origin): MillraceError {
  const wait = limits.failoverWaitMs;
  const why = `origin ${name}, which this session comes back to, cannot be reached: try it again, and "${elsewhere}" after ${wait} ms`;
  return new MillraceError("origin_unreachable", why, wait);
}

function hasCode(error: unknown, code: ErrorCode): boolean {
  return error instanceof MillraceError && error.code === code;
}
