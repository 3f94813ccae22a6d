/**
 * `npm run bench -- paging`: ranges of virtual addresses, as the engine has its KV memory, against block tables. engine/bench/paging.cpp
 * runs the same attention kernel through both; this makes tables of what it prints.
 */
import { loadavg } from "node:os";
import { table } from "../eval/describe.js";
import { runEngineProgram } from "./engineProgram.js";
import { median, quantile } from "./workload.js";

interface SpeedLine {
  kind: "speed";
  kernels: string;
  shape: string;
  sequences: number;
  tokens: number;
  way: string;
  /** Of keys and values, read by one pass. */
  bytes: number;
  /** CPU time of one pass, a round each. */
  seconds: number[];
}
interface WasteLine {
  kind: "waste";
  shape: string;
  way: string;
  pageTokens: number;
  pageBytes: number;
  /** Parts of what is used: in every page, in each sequence's last page, and in tables of any kind. */
  padding: number;
  lastPage: number;
  beside: number;
}
interface MappingLine {
  kind: "mapping";
  shape: string;
  pageBytes: number;
  pageTokens: number;
  firstUs: number;
  awayUs: number;
  againUs: number;
}
interface PoolLine {
  kind: "pool";
  shape: string;
  bytes: number;
  hugeBytes: number;
}
type Line = SpeedLine | WasteLine | MappingLine | PoolLine;

const rounds = { quick: 5, full: 15 };
/** What all others are held against: the product's way. */
const yardstick = "ranges, 4 KiB";

/** @returns all figures, for `--json`. */
export async function benchPaging({ quick, say }: { quick: boolean; say: (line: string) => void }): Promise<object> {
  const load = loadavg()[0] as number;
  const lines = runEngineProgram("bench_paging", [String(quick ? rounds.quick : rounds.full)]).map((line) => JSON.parse(line) as Line);
  const of = <Kind extends Line["kind"]>(kind: Kind, shape: string) =>
    lines.filter((line): line is Extract<Line, { kind: Kind }> => line.kind === kind && line.shape === shape);
  say(
    `load ${load.toFixed(2)} at the start; one thread, its CPU time; kernels: ${(lines.find(({ kind }) => kind === "speed") as SpeedLine).kernels}`,
  );
  for (const shape of new Set(lines.map((line) => line.shape))) {
    say(`\n== ${shape}`);
    for (const { bytes, hugeBytes } of of("pool", shape))
      say(`of the pool on large pages ${((100 * hugeBytes) / bytes).toFixed(0)}% lies in pages of 2 MiB`);
    say(describeSpeeds(of("speed", shape)));
    say(`\n${describeWaste(of("waste", shape))}`);
    for (const { pageBytes, pageTokens, firstUs, awayUs, againUs } of of("mapping", shape))
      say(
        `a page of ${pageTokens} tokens, ${pageBytes >> 10} KiB: mapped with new memory ${firstUs.toFixed(0)} us, taken away ${awayUs.toFixed(0)} us, mapped again ${againUs.toFixed(0)} us`,
      );
  }
  return { load, lines };
}

/** A row a batch: what ranges read a second, and how much longer each other way takes. */
function describeSpeeds(lines: SpeedLine[]): string {
  const ways = [...new Set(lines.map(({ way }) => way))].filter((way) => way !== yardstick);
  const rows = lines
    .filter(({ way }) => way === yardstick)
    .map((ranges) => {
      const others = ways.map((way) => {
        const line = lines.find((each) => each.way === way && each.sequences === ranges.sequences && each.tokens === ranges.tokens);
        if (!line) return "";
        const ratios = line.seconds.map((seconds, round) => seconds / (ranges.seconds[round] as number));
        return `${median(ratios).toFixed(2)} [${quantile(ratios, 0.25).toFixed(2)}-${quantile(ratios, 0.75).toFixed(2)}]`;
      });
      return [`${ranges.sequences} x ${ranges.tokens}`, `${(ranges.bytes / median(ranges.seconds) / 1e9).toFixed(1)} GB/s`, ...others];
    });
  return `times over ${yardstick}: medians of the rounds' ratios, and their middle halves\n${table(["sequences x tokens", yardstick, ...ways], rows)}`;
}

function describeWaste(lines: WasteLine[]): string {
  const percent = (part: number): string => `${(100 * part).toFixed(2)}%`;
  const rows = lines.map(({ way, pageTokens, padding, lastPage, beside }) => [
    `${way} of ${pageTokens}`,
    ...[padding, lastPage, beside, (1 + padding) * (1 + lastPage) + beside - 1].map(percent),
  ]);
  return table(["wasted, of what is used", "padding", "last page", "tables", "in all"], rows);
}
