/**
 * What origins say of themselves at `/readyz`. An answer is remembered in this isolate for edgeLimits.probeFreshMs, a failure for less.
 * Only answers are kept, never the promises of them (keys.ts says why): requests that come at once ask each for itself.
 */
import { limits } from "../../shared/limits.js";
import { edgeLimits } from "../limits.js";
import { textOf } from "./body.js";
import type { Origin } from "./registry.js";

const answers = ["ready", "loading", "draining"] as const;
export type OriginState = (typeof answers)[number] | "unreachable";

export interface Probe {
  readonly state: OriginState;
  /** Which run it is; of an origin that is unreachable the last that was known, of one that was never reached none. */
  readonly epoch: string | undefined;
}

interface Memory extends Probe {
  /** When it was asked. An answer is true of a time after that. */
  readonly askedMs: number;
}

/** By URL: what two configurations call by one name may be two machines. */
const memories = new Map<string, Memory>();

/** The origin's state, as it was at most edgeLimits.probeFreshMs ago. Never throws: who does not answer is unreachable. */
export async function probe(origin: Origin): Promise<Probe> {
  const memory = memories.get(origin.url);
  return memory && isFresh(memory) ? memory : probeAfresh(origin);
}

/** The origin's state now. */
export async function probeAfresh(origin: Origin): Promise<Probe> {
  const askedMs = performance.now();
  const said = await ask(origin);
  const before = memories.get(origin.url);
  const memory: Memory = { ...(said ?? { state: "unreachable", epoch: before?.epoch }), askedMs };
  // An answer that was long on its way must not take the place of a younger one.
  if (!before || before.askedMs <= askedMs) remember(origin.url, memory);
  return memory;
}

/** Something else was seen than the last probe said: the next one is asked for, however fresh this is. */
export function markUnsure({ url }: Origin): void {
  const memory = memories.get(url);
  if (memory) memories.set(url, { ...memory, askedMs: Number.NEGATIVE_INFINITY });
}

/** The states of those that were probed in this isolate, however long ago, by name; undefined where none was. */
export function lastStates(origins: readonly Origin[]): Record<string, OriginState> | undefined {
  const known = origins.flatMap(({ name, url }) => {
    const memory = memories.get(url);
    return memory ? [[name, memory.state] as const] : [];
  });
  return known.length > 0 ? Object.fromEntries(known) : undefined;
}

function isFresh({ state, askedMs }: Memory): boolean {
  return performance.now() - askedMs < (state === "unreachable" ? edgeLimits.probeFailedFreshMs : edgeLimits.probeFreshMs);
}

function remember(url: string, memory: Memory): void {
  const [oldest] = memories.keys();
  if (oldest !== undefined && !memories.has(url) && memories.size >= edgeLimits.originsMax) memories.delete(oldest);
  memories.set(url, memory);
}

async function ask({ name, url }: Origin): Promise<Probe | undefined> {
  const deadline = new AbortController();
  const timer = setTimeout(() => deadline.abort(), edgeLimits.probeAnswerMs);
  try {
    const response = await fetch(new URL("/readyz", url).href, { redirect: "manual", cache: "no-store", signal: deadline.signal });
    const said = stateIn(await textOf(response, edgeLimits.probeBytesMax));
    if (!said) console.warn(`origin ${name} at ${url} answered its probe with ${response.status} and no state of an origin`);
    return said;
  } catch (error) {
    console.warn(`origin ${name} at ${url} did not answer its probe:`, error instanceof Error ? error.message : error);
    return undefined;
  } finally {
    clearTimeout(timer);
  }
}

function stateIn(text: string): Probe | undefined {
  let said: { state?: unknown; epoch?: unknown } | null;
  try {
    said = JSON.parse(text) as typeof said;
  } catch {
    return undefined;
  }
  const state = answers.find((answer) => answer === said?.state);
  const epoch = said?.epoch;
  return state && typeof epoch === "string" && epoch !== "" && epoch.length <= limits.nameBytesMax ? { state, epoch } : undefined;
}
