/** The load of `npm run bench -- interference`, and what is measured under it. */
import { setMaxListeners } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import type { TokenServer } from "./interferenceServers.js";
import { median, quantile } from "./workload.js";

export const load = {
  streams: 8,
  /** A stream: so many tokens of prompt, and so many generated. All begin together, and again when all have ended. */
  streamPromptTokens: 64,
  streamTokens: 448,
  /** What arrives beside them. */
  promptTokens: 500,
  answerTokens: 16,
  everyMs: 4_000,
  /** Gaps at positions in one bucket are compared with one another. */
  bucketTokens: 32,
} as const;

/** Of a stream: the time since its last token, and where in its context the token stands. */
export interface Gap {
  position: number;
  ms: number;
}

export interface Phase {
  gaps: Gap[];
  seconds: number;
  /** Streams that ended before their length. */
  endedEarly: number;
  /** Of the prompts that arrived. */
  sent: number;
  completed: number;
  ttftMs: number[];
}

export interface Prompts {
  stream(): Int32Array;
  arriving(): Int32Array;
}

/** Streams alone: whole rounds of them, so that each position is seen, for so long at least. */
export async function runQuiet(server: TokenServer, prompts: Prompts, seconds: number): Promise<Phase> {
  const phase = emptyPhase();
  const begunMs = performance.now();
  const never = new AbortController().signal;
  do await runRound(server, prompts, phase, never);
  while (performance.now() - begunMs < 1_000 * seconds);
  phase.seconds = (performance.now() - begunMs) / 1_000;
  return phase;
}

/** Streams for so long while prompts arrive. Prompts that have come are served to their end; streams are then cancelled. */
export async function runLoaded(server: TokenServer, prompts: Prompts, seconds: number): Promise<Phase> {
  const phase = emptyPhase();
  const begunMs = performance.now();
  const over = new AbortController();
  setMaxListeners(0, over.signal);
  const streams = (async () => {
    while (!over.signal.aborted) await runRound(server, prompts, phase, over.signal);
  })();
  const arrived: Promise<void>[] = [];
  const arrive = (): void => {
    phase.sent++;
    arrived.push(runArrival(server, prompts.arriving(), phase));
  };
  const timer = setInterval(arrive, load.everyMs);
  try {
    // Streams end only when they are told to: otherwise something is wrong, and is thrown here.
    await Promise.race([sleep(1_000 * seconds), streams]);
    clearInterval(timer);
    await Promise.all(arrived);
  } finally {
    clearInterval(timer);
    over.abort();
  }
  await streams;
  phase.seconds = (performance.now() - begunMs) / 1_000;
  return phase;
}

const emptyPhase = (): Phase => ({ gaps: [], seconds: 0, endedEarly: 0, sent: 0, completed: 0, ttftMs: [] });

/** All streams, from their beginning to their length. */
async function runRound(server: TokenServer, prompts: Prompts, phase: Phase, over: AbortSignal): Promise<void> {
  await Promise.all(
    Array.from({ length: load.streams }, async () => {
      let position: number = load.streamPromptTokens;
      let lastMs = 0;
      const told = (count: number): void => {
        const nowMs = performance.now();
        position += count;
        if (lastMs > 0) phase.gaps.push({ position, ms: nowMs - lastMs });
        lastMs = nowMs;
      };
      const reason = await server.generate(prompts.stream(), load.streamTokens, told, over);
      if (reason === "stop") phase.endedEarly++;
    }),
  );
}

async function runArrival(server: TokenServer, prompt: Int32Array, phase: Phase): Promise<void> {
  const begunMs = performance.now();
  let isFirst = true;
  const told = (): void => {
    if (isFirst) phase.ttftMs.push(performance.now() - begunMs);
    isFirst = false;
  };
  const reason = await server.generate(prompt, load.answerTokens, told, new AbortController().signal);
  if (reason === "length" || reason === "stop") phase.completed++;
}

export interface Figures {
  name: string;
  quiet: { p50: number; p95: number; p99: number; max: number };
  loaded: { p50: number; p95: number; p99: number; max: number };
  /** p99 of the gaps with prompts over p99 of those without, at the same positions. */
  p99OverQuiet: number;
  /** p99 of (a gap with prompts / the median of those without, at the same position). */
  p99OfRatios: number;
  tokensPerSecond: { quiet: number; loaded: number };
  ttftMs: { p50: number; p95: number; max: number };
  sent: number;
  completed: number;
  endedEarly: number;
}

/** @param quiet without prompts, and `loaded` with them, of the same streams. */
export function compare(name: string, quiet: Phase[], loaded: Phase): Figures {
  const quietOf = new Map<number, number[]>();
  for (const { position, ms } of quiet.flatMap(({ gaps }) => gaps)) {
    const bucket = Math.floor(position / load.bucketTokens);
    quietOf.set(bucket, [...(quietOf.get(bucket) ?? []), ms]);
  }
  const medians = new Map([...quietOf].map(([bucket, gaps]) => [bucket, median(gaps)]));
  const same = loaded.gaps.filter(({ position }) => medians.has(Math.floor(position / load.bucketTokens)));
  const loadedCounts = new Map<number, number>();
  for (const { position } of same) {
    const bucket = Math.floor(position / load.bucketTokens);
    loadedCounts.set(bucket, (loadedCounts.get(bucket) ?? 0) + 1);
  }
  const times = same.map(({ ms }) => ms);
  const quietTimes = weighted(quietOf, loadedCounts);
  const ratios = same.map(({ position, ms }) => ms / (medians.get(Math.floor(position / load.bucketTokens)) as number));
  const tokens = (phases: Phase[]): number => phases.reduce((sum, { gaps }) => sum + gaps.length, 0);
  const seconds = (phases: Phase[]): number => phases.reduce((sum, phase) => sum + phase.seconds, 0);
  return {
    name,
    quiet: spread(quietTimes),
    loaded: spread(times),
    p99OverQuiet: quantile(times, 0.99) / quantile(quietTimes, 0.99),
    p99OfRatios: quantile(ratios, 0.99),
    tokensPerSecond: { quiet: tokens(quiet) / seconds(quiet), loaded: tokens([loaded]) / loaded.seconds },
    ttftMs: { p50: quantile(loaded.ttftMs, 0.5), p95: quantile(loaded.ttftMs, 0.95), max: quantile(loaded.ttftMs, 1) },
    sent: loaded.sent,
    completed: loaded.completed,
    endedEarly: [...quiet, loaded].reduce((sum, phase) => sum + phase.endedEarly, 0),
  };
}

/** Quiet gaps, each bucket's evenly picked so that positions weigh as they do under load. */
function weighted(quietOf: Map<number, number[]>, counts: Map<number, number>): number[] {
  return [...counts].flatMap(([bucket, count]) => {
    const gaps = Float64Array.from(quietOf.get(bucket) ?? []).sort();
    return Array.from({ length: count }, (_, index) => gaps[Math.floor(((index + 0.5) * gaps.length) / count)] as number);
  });
}

function spread(times: number[]) {
  return { p50: quantile(times, 0.5), p95: quantile(times, 0.95), p99: quantile(times, 0.99), max: quantile(times, 1) };
}
