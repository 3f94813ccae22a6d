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

test("decoding is counted from the moment when every sequence has its first token", () => {
  let ms = 0;
  const meter = new DecodeMeter(2, () => ms);
  ms = 10;
  meter.reached(0, 1);
  ms = 30;
  meter.reached(0, 5); // while the other's prompt is still computed
  ms = 40;
  meter.reached(1, 1);
  ms = 50;
  meter.reached(0, 9);
  ms = 60;
  meter.reached(1, 4);
  // 7 tokens in 20 ms; in all 60 ms 13 tokens and 2 prompts of 10, whose last position is the first token's.
  expect(meter.rates(10)).toEqual({ decode: 350, whole: (1_000 * (13 + 18)) / 60 });
});

test("quantiles interpolate", () => {
  expect(median([3, 1, 2])).toBe(2);
  expect(median([4, 1, 2, 3])).toBe(2.5);
  expect(quantile([10, 20], 0.99)).toBeCloseTo(19.9, 12);
  expect(quantile([5], 0.99)).toBe(5);
});
