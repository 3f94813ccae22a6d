import fc from "fast-check";
import { expect, test } from "vitest";
import { Pace } from "../../client/pace.js";

// Hand-computed: the first token 100 ms after START, then gaps of 10, 10 and 40 ms.
test("measures what a reader felt", () => {
  const pace = new Pace(1_000);
  for (const [tokens, nowMs] of [
    [1, 1_100],
    [2, 1_110],
    [3, 1_120],
    [4, 1_160],
  ] as const)
    pace.arrived(tokens, nowMs);
  expect(pace.measures()).toEqual({ firstTokenMs: 100, tokens: 4, tokensPerSecond: 50, gapP50Ms: 10, gapP99Ms: 40 });
});

// The first token came 120 ms after START was sent for good, of which the origin accounts for 90.
test("the network's part is what the origin does not account for", () => {
  const pace = new Pace(0);
  pace.explained(90);
  expect(pace.measures().networkMs).toBeUndefined();
  pace.sent(10);
  pace.sent(30);
  pace.arrived(1, 150);
  pace.sent(400);
  pace.explained(90);
  expect(pace.measures()).toMatchObject({ firstTokenMs: 150, networkMs: 30 });
  pace.explained(1_000);
  expect(pace.measures().networkMs).toBe(0);
});

// Nothing is claimed before it is known.
test("one frame has no speed", () => {
  const pace = new Pace(0);
  expect(pace.measures().firstTokenMs).toBeUndefined();
  pace.arrived(3, 20);
  const nothing = { tokensPerSecond: undefined, gapP50Ms: undefined, gapP99Ms: undefined };
  expect(pace.measures()).toEqual({ firstTokenMs: 20, tokens: 3, ...nothing });
});

// Tokens that came together waited once: the percentiles equal those of the gaps written out one by one.
test("coalesced frames count every token", () => {
  const frames = fc.array(fc.tuple(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 100 })), { minLength: 1, maxLength: 60 });
  fc.assert(
    fc.property(frames, (sizes) => {
      const pace = new Pace(0);
      const gaps: number[] = [];
      let [seq, nowMs] = [1, 5];
      pace.arrived(seq, nowMs);
      for (const [tokens, gapMs] of sizes) {
        seq += tokens;
        nowMs += gapMs;
        pace.arrived(seq, nowMs);
        gaps.push(gapMs, ...Array<number>(tokens - 1).fill(0));
      }
      gaps.sort((a, b) => a - b);
      const rank = (fraction: number) => gaps[Math.ceil(fraction * gaps.length) - 1];
      expect(pace.measures()).toMatchObject({ gapP50Ms: rank(0.5), gapP99Ms: rank(0.99) });
    }),
  );
});
