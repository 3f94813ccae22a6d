/** What the engine's benchmark makes of its measurements. */
import { expect, test } from "vitest";
import { type Context, describeBusy, describeSpeed, judge, judgeBusy, type Speed } from "../../scripts/bench/speed.js";

const speed = (name: string, prefill: number[], decode: number[]): Speed => ({
  name,
  prefill,
  decode: { 1: decode, 8: decode, 32: decode },
  whole: { 1: decode, 8: decode, 32: decode },
  peakBytes: 1_048_576,
});
const speeds = [
  speed("millrace", [1_000, 2_000, 3_000], [100, 100, 100]),
  speed("llama.cpp, flash attention off", [500, 500, 500], [50, 80, 100]),
  speed("llama.cpp, flash attention on", [400, 400, 400], [100, 20, 10]),
  speed("another", [4_000, 4_000, 4_000], [400, 400, 400]),
];

test("a bar is held against the median of the rounds' ratios to the better of llama.cpp's settings", () => {
  const judged = judge(speeds, { prefill: 2.5, decode: { 1: 1.5, 8: 2.5, 32: 2.5 } });
  expect(judged.map(({ bar, ratio }) => [bar, ratio])).toEqual([
    [2.5, 4],
    [1.5, 1.25],
    [2.5, 1.25],
    [2.5, 1.25],
  ]);
});

// A step at batch 1 reads all weights; what the others are bound by is multiplying.
test("beside a speed stands what it asks of the machine", () => {
  const context: Context = {
    work: { weightBytes: 1e8, tokenMultiplyAdds: 9e7, sampleMultiplyAdds: 1e7 },
    limits: { readBytes: 2e10, multiplyAdds: 4e11, instruction: "any" },
    fileWeightBytes: 2e8,
  };
  const [, ours, off] = describeSpeed(speeds, context)
    .split("\n")
    .map((line) => line.split(/ {2,}/));
  expect(ours?.slice(1, 5)).toEqual(["2000 (180 GMAC/s, 45%)", "100 (10.0 GB/s, 50%)", "100 (10 GMAC/s, 3%)", "100 (10 GMAC/s, 3%)"]);
  expect(off?.[2]).toBe("80 (16.0 GB/s, 80%)");
});

test("beside a busy core, ours is held against itself when quiet and against llama.cpp with as many threads", () => {
  const busy = [
    { name: "millrace", quiet: [100, 200, 100], busy: [70, 120, 90] },
    { name: "two threads", quiet: [100, 100, 100], busy: [20, 20, 20] },
    { name: "one thread", quiet: [60, 60, 60], busy: [50, 50, 50] },
  ];
  expect(judgeBusy(busy, ["two threads"])).toEqual({ kept: 0.7, timesPeer: 4.5 });
  expect(describeBusy(busy)).toContain("ours / one thread, both beside the busy core: 1.80 [1.40-2.40]");
});
