/** A small storm, always the same: `npm run test:chaos` is the large one. */
import { expect, test } from "vitest";
import { runStorm } from "../../scripts/chaos/storm.js";

// Whatever happens to connections and processes on either side of the edge, each answer is the one that its prompt has.
test("answers are whole under a storm", async () => {
  const shape = { answers: 60, riders: 20, answerTokens: 150, tokensPerSecond: 100, disturbancesPerSecond: 30, deathEveryMs: 2_000 };
  const tally = await runStorm({ seed: 7, ...shape, say: () => {} });
  expect(tally.wrongs).toEqual([]);
  expect(tally.answered).toBe(60);
  expect(tally.disturbances).toBeGreaterThan(100);
  for (const path of ["replay", "restart", "park"] as const) expect(tally.of(path), path).toBeGreaterThan(0);
}, 120_000);
