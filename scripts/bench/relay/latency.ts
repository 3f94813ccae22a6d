/** (a): how many streams a path carries with their tokens on time, and of what load it could not take that is a part. */
import { setTimeout as passed } from "node:timers/promises";
import { table } from "../../eval/describe.js";
import { SetupError } from "../../setup/exec.js";
import { damage, delivered, openStreams, type Window, window } from "./load.js";
import type { LoadClient } from "./loadClient.js";
import { largest } from "./search.js";
import { Path } from "./servers.js";
import { bars, type Lengths, latency, running } from "./settings.js";

export type PathKind = "direct" | "workerd";

export interface LatencyResult {
  path: PathKind;
  /** Most streams that the path keeps up with, or the most that an origin takes. */
  saturation: number;
  isCapped: boolean;
  /** Most streams with p99 under the bar, of those up to the part of saturation that may be used. */
  streams: number;
  /** Of the saturation. */
  load: number;
  /** What was seen with so many streams. */
  window: Window | undefined;
}

/** Of what a server said before it went. */
const saidCharsMax = 200;
const stepMs = 1_000 / latency.tokensPerSecond;

export async function measureLatency(kind: PathKind, lengths: Lengths, say: (line: string) => void): Promise<LatencyResult> {
  const { searchS, windowS, precision } = lengths;
  const max = running.socketsMax;
  const saturation = await largest(async (streams) => keepsUp(await trial(kind, streams, searchS, say), streams), {
    ...{ from: latency.fromStreams[kind], max, precision },
  });
  let best: Window | undefined;
  const streams = await largest(
    async (count) => {
      const seen = await trial(kind, count, windowS, say);
      const isGood = keepsUp(seen, count) && (seen as Window).latencyMs.p99 < bars.latency.p99Ms;
      if (isGood) best = seen;
      return isGood;
    },
    { from: Math.floor(bars.latency.loadMax * saturation), max: Math.floor(bars.latency.loadMax * saturation), precision },
  );
  return { path: kind, saturation, isCapped: saturation === max, streams, load: streams / saturation, window: best };
}

/** @returns undefined where the streams could not all be begun, or were damaged. */
async function trial(kind: PathKind, streams: number, seconds: number, say: (line: string) => void): Promise<Window | undefined> {
  const path = await Path.start({
    ...{ tokensPerSecond: latency.tokensPerSecond, slots: streams },
    ...(kind === "workerd" ? { edge: "workerd" as const } : {}),
  });
  let client: LoadClient | undefined;
  try {
    client = await openStreams(path, streams);
    await passed(1_000 * running.warmUpS);
    const seen = await window(client, path, seconds);
    const wrong = damage(seen, streams);
    say(wrong === undefined ? describeTrial(kind, streams, seen) : `  ${kind}, ${streams} streams: ${wrong}`);
    return wrong === undefined ? seen : undefined;
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    say(`  ${kind}, ${streams} streams: ${error.message} (${path.said.slice(0, saidCharsMax)})`);
    return undefined;
  } finally {
    await client?.quit();
    await path.stop();
  }
}

function keepsUp(seen: Window | undefined, streams: number): boolean {
  return seen !== undefined && delivered(seen, streams, latency.tokensPerSecond) >= running.deliveredMin && seen.latencyMs.p50 < stepMs;
}

function describeTrial(kind: PathKind, streams: number, seen: Window): string {
  const { latencyMs } = seen;
  const part = (100 * delivered(seen, streams, latency.tokensPerSecond)).toFixed(1);
  const busy = [seen.originBusy, seen.edgeBusy, seen.clientBusy].map((each) => (each === undefined ? "-" : `${(100 * each).toFixed(0)}%`));
  return `  ${kind}, ${streams} streams: ${part}% came, p50 ${latencyMs.p50.toFixed(2)}, p99 ${latencyMs.p99.toFixed(2)} ms; busy: origin ${busy[0]}, edge ${busy[1]}, client ${busy[2]}`;
}

export function describeLatency(results: readonly LatencyResult[]): string {
  const header = [
    "path",
    "saturated at",
    "streams",
    "load",
    "p50",
    "p90",
    "p99",
    "p99.9",
    "max",
    "origin",
    "edge",
    "client",
    "tokens a frame",
  ];
  const percent = (part: number | undefined): string => (part === undefined ? "" : `${(100 * part).toFixed(0)}%`);
  return table(
    header,
    results.map(({ path, saturation, isCapped, streams, load, window: seen }) => {
      const { p50 = 0, p90 = 0, p99 = 0, p999 = 0, max = 0 } = seen?.latencyMs ?? {};
      return [
        ...[path, isCapped ? `over ${saturation}` : String(saturation), String(streams), percent(load)],
        ...[p50, p90, p99, p999, max].map((ms) => ms.toFixed(2)),
        ...[percent(seen?.originBusy), percent(seen?.edgeBusy), percent(seen?.clientBusy)],
        seen ? (seen.tokens / seen.frames).toFixed(3) : "",
      ];
    }),
  );
}
