import { expect, test } from "vitest";
import { DecodeMeter, median, quantile } from "../../scripts/bench/workload.js";
import { indexOfMax, type LogitSource, logSumExp, score } from "../../scripts/eval/score.js";
import { windowsOf } from "../../scripts/eval/windows.js";

/** Says the same distribution everywhere. */
function constant(name: string, row: number[]): LogitSource {
  return {
    name,
    logits: async (tokens) => Float32Array.from({ length: tokens.length * row.length }, (_, index) => row[index % row.length] as number),
    close: async () => {},
  };
}

const windows = [Int32Array.of(0, 1, 2, 3), Int32Array.of(3, 2, 1, 0)];

test("a model that knows nothing is as perplexed as its vocabulary is large, however its logits are shifted", async () => {
  const [flat] = await score([constant("flat", [7, 7, 7, 7])], windows, 0);
  expect(flat?.perplexity).toBeCloseTo(4, 12);
  expect(flat?.positions).toBe(6);
  expect(flat?.distance).toBeUndefined();
});

test("only positions from `skip` on are scored, and never a window's last", async () => {
  // It is sure of token 3, which follows position 2 of the first window and no scored position of the second.
  const [, second] = await score([constant("flat", [0, 0, 0, 0]), constant("sure", [0, 0, 0, 30])], windows, 2);
  expect(second?.positions).toBe(2);
  expect(second?.perplexity).toBeCloseTo(Math.exp((0 + 30) / 2), 3);
});

test("the distance is KL(yardstick || other) in nats, and top-1 counts equal likeliest tokens", async () => {
  const p = [0.5, 0.25, 0.125, 0.125];
  const q = [0.25, 0.5, 0.125, 0.125];
  const [, same, other] = await score(
    [p, p.map((value) => 8 * value), q].map((row, index) => constant(String(index), row.map(Math.log))),
    windows,
    0,
  );
  expect(same?.distance?.klMean).toBeCloseTo(0, 6);
  expect(same?.distance?.top1).toBe(1);
  expect(other?.distance?.klMean).toBeCloseTo(0.5 * Math.log(2) - 0.25 * Math.log(2), 6);
  expect(other?.distance?.klMax).toBeCloseTo(0.25 * Math.log(2), 6);
  expect(other?.distance?.top1).toBe(0);
});

test("large logits do not overflow", () => {
  expect(logSumExp(Float32Array.of(1_000, 1_000))).toBeCloseTo(1_000 + Math.log(2), 9);
  expect(indexOfMax(Float32Array.of(-3, 5, 5))).toBe(1);
});

test("a text is cut into whole windows, each begun as the model wants it", () => {
  const tokens = Int32Array.from({ length: 11 }, (_, index) => index + 10);
  const vocabulary = { addBos: true, bosToken: 1 } as Parameters<typeof windowsOf>[1];
  expect(windowsOf(tokens, vocabulary, 4, 2)).toEqual([Int32Array.of(1, 11, 12, 13), Int32Array.of(1, 15, 16, 17)]);
  expect(windowsOf(tokens, { ...vocabulary, addBos: false }, 11, 2)).toEqual([tokens]);
  expect(() => windowsOf(tokens, vocabulary, 12, 2)).toThrow("the text has 11 tokens, less than one window of 12");
});

test("decoding is counted while every sequence runs", async () => {
  let ms = 0;
  const meter = new DecodeMeter(2, 6, () => ms);
  const step = async (atMs: number, ...counts: [first: number, second: number]): Promise<void> => {
    ms = atMs;
    for (const [index, count] of counts.entries()) meter.reached(index, count);
    await Promise.resolve();
  };
  await step(10, 1, 0);
  await step(30, 2, 0); // while the other's prompt is still computed
  await step(40, 3, 1);
  await step(50, 4, 2);
  await step(60, 6, 3);
  await step(100, 6, 4); // alone, as no step of a full batch is
  await step(140, 6, 6);
  // 5 tokens in 20 ms; in all 140 ms 12 tokens and 2 prompts of 10, whose last position is the first token's.
  expect(meter.rates(10)).toEqual({ decode: 250, whole: (1_000 * (12 + 18)) / 140 });
});

test("a batch that was never full has no rate", async () => {
  const meter = new DecodeMeter(2, 2, () => 5);
  meter.reached(0, 2);
  await Promise.resolve();
  meter.reached(1, 1);
  expect(() => meter.rates(10)).toThrow("the first ended before the last had begun");
});

test("quantiles interpolate", () => {
  expect(median([3, 1, 2])).toBe(2);
  expect(median([4, 1, 2, 3])).toBe(2.5);
  expect(quantile([10, 20], 0.99)).toBeCloseTo(19.9, 12);
  expect(quantile([5], 0.99)).toBe(5);
});
