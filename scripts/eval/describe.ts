/** The figures of `npm run eval` and of the benchmarks, as text. */
import type { Score } from "./score.js";

export function describeMethod(
  file: string,
  tokens: number,
  windows: Int32Array[],
  { window, skip }: { window: number; skip: number },
): string {
  const scored = windows.length * (window - 1 - skip);
  return (
    `${file}: ${tokens} tokens, ${windows.length} windows of ${window}, each from an empty context; ` +
    `positions ${skip} to ${window - 2} of each are scored, ${scored} in all`
  );
}

/** A row a source; the distances are from the first. */
export function describeScores(scores: Score[]): string {
  const header = ["", "perplexity", "KL mean", "KL p99", "KL max", "top-1", "tokens/s"];
  const rows = scores.map(({ name, perplexity, tokensPerSecond, distance }) => [
    name,
    perplexity.toFixed(4),
    ...(distance
      ? [distance.klMean, distance.klP99, distance.klMax].map((kl) => kl.toPrecision(4)).concat(`${(100 * distance.top1).toFixed(2)}%`)
      : ["", "", "", ""]),
    tokensPerSecond.toFixed(0),
  ]);
  return table(header, rows);
}

/** Columns padded to their widest cell, the first to the left and the others to the right. */
export function table(header: string[], rows: string[][]): string {
  const all = [header, ...rows];
  const widths = header.map((_, column) => Math.max(...all.map((row) => (row[column] ?? "").length)));
  const line = (row: string[]): string =>
    row.map((cell, column) => (column === 0 ? cell.padEnd(widths[0] as number) : cell.padStart(widths[column] as number))).join("  ");
  return all.map((row) => line(row).trimEnd()).join("\n");
}
