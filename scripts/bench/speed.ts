/** Speeds of contenders that took turns, as tables: medians, and medians of the rounds' ratios. */
import type { MatrixWork } from "../../engine/binding/index.js";
import { table } from "../eval/describe.js";
import type { Limits } from "./limits.js";
import type { BusySpeed } from "./turns.js";
import type { Bars } from "./weights.js";
import { median, quantile, workload } from "./workload.js";

/** A value a round, tokens a second. */
export interface Speed {
  name: string;
  prefill: number[];
  /** By batch. */
  decode: Record<number, number[]>;
  whole: Record<number, number[]>;
  peakBytes: number;
}

interface Column {
  title: string;
  of: (speed: Speed) => number[];
  /** What a rate asks of the machine, beside what it can do. */
  effort?: (rate: number, speed: Speed, context: Context) => string;
  bar?: (bars: Bars) => number | undefined;
}

/** What the matrices ask for, and what the machine gives. */
export interface Context {
  work: MatrixWork;
  limits: Limits;
  /** Of the file, which llama.cpp reads more or less as they are. */
  fileWeightBytes: number;
}

const columns: Column[] = [
  {
    title: `prefill ${workload.prefillTokens}`,
    of: ({ prefill }) => prefill,
    effort: (rate, _, { work, limits }) =>
      multiplied(rate * (work.tokenMultiplyAdds + work.sampleMultiplyAdds / workload.prefillTokens), limits),
    bar: ({ prefill }) => prefill,
  },
  ...workload.batches.map((batch) => ({
    title: `decode b${batch}`,
    of: ({ decode }: Speed) => decode[batch] ?? [],
    effort: batch === 1 ? readOf : multipliedOf,
    bar: ({ decode }: Bars) => decode[batch],
  })),
  ...workload.batches.map((batch) => ({ title: `whole b${batch}`, of: ({ whole }: Speed) => whole[batch] ?? [] })),
];

function readOf(rate: number, { name }: Speed, { work, limits, fileWeightBytes }: Context): string {
  const bytes = rate * (name === ourName ? work.weightBytes : fileWeightBytes);
  return `${(bytes / 1e9).toFixed(1)} GB/s, ${percent(bytes, limits.readBytes)}`;
}

function multipliedOf(rate: number, _: Speed, { work, limits }: Context): string {
  return multiplied(rate * (work.tokenMultiplyAdds + work.sampleMultiplyAdds), limits);
}

const multiplied = (rate: number, limits: Limits): string => `${(rate / 1e9).toFixed(0)} GMAC/s, ${percent(rate, limits.multiplyAdds)}`;
const percent = (part: number, whole: number): string => `${((100 * part) / whole).toFixed(0)}%`;

export const ourName = "millrace";
const isLlamaCpp = ({ name }: { name: string }): boolean => name.startsWith("llama.cpp");

/** @param speeds ours first. */
export function describeSpeed(speeds: Speed[], context: Context): string {
  const [ours, ...peers] = speeds as [Speed, ...Speed[]];
  const header = ["tokens/s", ...columns.map(({ title }) => title), "peak RSS"];
  const rows = speeds.map((speed) => [
    speed.name,
    ...columns.map(({ of, effort }) => {
      const rate = median(of(speed));
      return effort ? `${rate.toFixed(0)} (${effort(rate, speed, context)})` : rate.toFixed(0);
    }),
    `${(speed.peakBytes / 1_048_576).toFixed(0)} MiB`,
  ]);
  rows.push([
    "ours / llama.cpp's better",
    ...columns.map(({ of }) => describeRatios(ratios(of(ours), of(best(peers.filter(isLlamaCpp), of))))),
  ]);
  for (const peer of peers.filter((speed) => !isLlamaCpp(speed)))
    rows.push([`ours / ${peer.name}`, ...columns.map(({ of }) => describeRatios(ratios(of(ours), of(peer))))]);
  return table(header, rows);
}

/** What each column's bar is, and the median of the rounds' ratios. */
export function judge(speeds: Speed[], bars: Bars): { title: string; ratio: number; bar: number }[] {
  const [ours, ...peers] = speeds as [Speed, ...Speed[]];
  return columns.flatMap(({ title, of, bar }) => {
    const least = bar?.(bars);
    return least === undefined ? [] : [{ title, ratio: median(ratios(of(ours), of(best(peers.filter(isLlamaCpp), of)))), bar: least }];
  });
}

/** What another process on one core leaves of each, ours first. */
export function describeBusy(speeds: BusySpeed[]): string {
  const [ours, ...peers] = speeds as [BusySpeed, ...BusySpeed[]];
  const rows = speeds.map(({ name, quiet, busy }) => [
    name,
    median(quiet).toFixed(0),
    median(busy).toFixed(0),
    describeRatios(ratios(busy, quiet)),
  ]);
  const lines = [table(["decode b1, one core busy", "quiet", "busy", "busy / quiet"], rows)];
  for (const peer of peers) lines.push(`ours / ${peer.name}, both beside the busy core: ${describeRatios(ratios(ours.busy, peer.busy))}`);
  return lines.join("\n");
}

/** @returns what is left of our quiet speed, and how many times the better of llama.cpp's with as many threads that is. */
export function judgeBusy(speeds: BusySpeed[], names: string[]): { kept: number; timesPeer: number } {
  const [ours, ...others] = speeds as [BusySpeed, ...BusySpeed[]];
  const peer = best(
    others.filter(({ name }) => names.includes(name)),
    ({ busy }) => busy,
  );
  return { kept: median(ratios(ours.busy, ours.quiet)), timesPeer: median(ratios(ours.busy, peer.busy)) };
}

function best<T>(speeds: T[], of: (speed: T) => number[]): T {
  return speeds.reduce((first, second) => (median(of(second)) > median(of(first)) ? second : first));
}

/** A round's each. */
function ratios(ours: number[], theirs: number[]): number[] {
  return ours.map((value, round) => value / (theirs[round] as number));
}

/** Their median, and between which they lie. */
function describeRatios(each: number[]): string {
  return `${median(each).toFixed(2)} [${quantile(each, 0).toFixed(2)}-${quantile(each, 1).toFixed(2)}]`;
}
