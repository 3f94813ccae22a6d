import { expect, test } from "vitest";
import { Durations } from "../../origin/durations.js";

// Token i is due at the promised TTFT + (i - 1) x ITL: early tokens bank credit, and what is late is counted.
test("tokens are late by their due time, not by their gap", () => {
  const durations = new Durations(1_000);
  durations.promise(100, 10);
  expect(durations.released(1, 1_050)).toBe(50);
  // Due at 1110 and 1120: 60 ms of silence were banked.
  expect(durations.released(1, 1_110)).toBe(60);
  expect(durations.slo).toEqual({ lateTokens: 0, good: true });
  durations.released(1, 1_121);
  expect(durations.slo).toEqual({ lateTokens: 1, good: false });
  expect(durations.gap(5)).toEqual({ gapMs: 60, gapCause: "engine" });
});

test("one token of a hundred may be late, but not the first", () => {
  const durations = new Durations(0);
  durations.promise(100, 10);
  durations.released(99, 90);
  durations.released(1, 5_000);
  expect(durations.slo).toEqual({ lateTokens: 1, good: true });
  const late = new Durations(0);
  late.promise(100, 10);
  late.released(1, 101);
  late.released(999, 102);
  expect(late.slo).toEqual({ lateTokens: 1, good: false });
});

// Without credit nothing is due, and the longest gap says so.
test("deadlines stop in the park", () => {
  const durations = new Durations(0);
  durations.promise(10, 10);
  durations.released(1, 5);
  durations.parked(500);
  durations.released(1, 515);
  expect(durations.slo).toEqual({ lateTokens: 0, good: true });
  expect(durations.parkedMs).toBe(500);
  expect(durations.gap(0)).toEqual({ gapMs: 510, gapCause: "parked" });
  expect(durations.gap(600)).toEqual({ gapMs: 600, gapCause: "outbox" });
});
