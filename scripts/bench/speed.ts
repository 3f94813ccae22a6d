/** Speeds of contenders that took turns, as a table: medians, and medians of the rounds' ratios. */
import { table } from "../eval/describe.js";
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
  /** Sequences a step, where a step reads all weights once. */
  batch?: number;
}

const columns: Column[] = [
  { title: `prefill ${workload.prefillTokens}`, of: ({ prefill }) => prefill },
  ...workload.batches.map((batch) => ({ title: `decode b${batch}`, batch, of: ({ decode }: Speed) => decode[batch] ?? [] })),
  ...workload.batches.map((batch) => ({ title: `whole b${batch}`, of: ({ whole }: Speed) => whole[batch] ?? [] })),
];

/** @param bandwidth bytes a second that memory was read with. @param weightBytes read by each decode step. */
export function describeSpeed(speeds: Speed[], bandwidth: number, weightBytes: number): string {
  const [ours, ...peers] = speeds as [Speed, ...Speed[]];
  const header = ["tokens/s (% of the memory's pace)", ...columns.map(({ title }) => title), "peak RSS"];
  const rows = speeds.map((speed) => [
    speed.name,
    ...columns.map(({ of, batch }) => {
      const rate = median(of(speed));
      const fraction = batch ? ` (${((100 * (rate / batch) * weightBytes) / bandwidth).toFixed(0)}%)` : "";
      return `${rate.toFixed(0)}${fraction}`;
    }),
    `${(speed.peakBytes / 1_048_576).toFixed(0)} MiB`,
  ]);
  const isLlamaCpp = ({ name }: Speed): boolean => name.startsWith("llama.cpp");
  rows.push(["ours / llama.cpp's better", ...columns.map(({ of }) => ratio(of(ours), of(best(peers.filter(isLlamaCpp), of))))]);
  for (const peer of peers.filter((speed) => !isLlamaCpp(speed)))
    rows.push([`ours / ${peer.name}`, ...columns.map(({ of }) => ratio(of(ours), of(peer)))]);
  return table(header, rows);
}

function best(speeds: Speed[], of: (speed: Speed) => number[]): Speed {
  return speeds.reduce((first, second) => (median(of(second)) > median(of(first)) ? second : first));
}

/** The median of the rounds' ratios, and between which they lie. */
function ratio(ours: number[], theirs: number[]): string {
  const ratios = ours.map((value, round) => value / (theirs[round] as number));
  return `${median(ratios).toFixed(2)} [${quantile(ratios, 0).toFixed(2)}-${quantile(ratios, 1).toFixed(2)}]`;
}
