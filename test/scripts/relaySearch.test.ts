/** What `npm run bench -- relay` concludes from what it measured. */
import * as fc from "fast-check";
import { expect, test } from "vitest";
import { type CpuProfile, selfTimes } from "../../scripts/bench/relay/profile.js";
import { largest } from "../../scripts/bench/relay/search.js";

// A limit is found wherever it lies, to within the precision that was asked for, and never beyond it: what is reported has been seen to hold.
test("the largest count that holds", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 0, max: 20_000 }),
      fc.integer({ min: 1, max: 12_000 }),
      fc.double({ min: 0.01, max: 0.3, noNaN: true }),
      async (limit, from, precision) => {
        const max = 10_000;
        const held: number[] = [0];
        const found = await largest(
          async (count) => {
            expect(count).toBeGreaterThanOrEqual(1);
            expect(count).toBeLessThanOrEqual(max);
            if (count <= limit) held.push(count);
            return count <= limit;
          },
          { from, max, precision },
        );
        expect(held).toContain(found);
        expect(Math.min(limit, max) - found).toBeLessThanOrEqual(Math.max(1, precision * found));
      },
    ),
  );
});

// Each try takes half a minute: none is made twice, and a limit far from the first guess is still found in a few.
test("the search tries each count once, and few", async () => {
  const tried: number[] = [];
  const holds = async (count: number): Promise<boolean> => {
    tried.push(count);
    return count <= 3_000;
  };
  expect(await largest(holds, { from: 1_000, max: 10_000, precision: 0.06 })).toBe(3_000);
  expect(tried).toEqual([1_000, 2_000, 4_000, 3_000, 3_500, 3_250, 3_125]);
});

// Of a profile only the window counts, idle time is not work, and one function is one row wherever it was called from.
test("self times of a profile", () => {
  const frame = (functionName: string, url = "", lineNumber = 0): CpuProfile["nodes"][0]["callFrame"] => ({
    functionName,
    url,
    lineNumber,
  });
  const profile: CpuProfile = {
    startTime: 1_000,
    nodes: [
      { id: 1, callFrame: frame("(idle)") },
      { id: 2, callFrame: frame("#write", "file:///anywhere/origin/socket.ts") },
      { id: 3, callFrame: frame("#write", "file:///anywhere/origin/socket.ts") },
      { id: 4, callFrame: frame("(garbage collector)") },
      { id: 5, callFrame: frame("", "file:///anywhere/node_modules/a/b.js", 6) },
    ],
    samples: [2, 1, 2, 3, 4, 5, 2],
    timeDeltas: [100, 200, 300, 100, 50, 50, 400],
  };
  // The first sample ends at 1,100, the last at 2,200.
  const { busy, top } = selfTimes(profile, 1_200, 2_000);
  expect(busy).toBeCloseTo(500 / 700);
  expect(top).toEqual([
    { name: "#write", where: "origin/socket.ts", share: 0.8 },
    { name: "(garbage collector)", where: "V8", share: 0.1 },
    { name: "(line 7)", where: "node_modules/a/b.js", share: 0.1 },
  ]);
});
