/** Tokens that say when they were due: a load client on the same machine reads how late they are. */
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { InferenceRequest } from "../../origin/inference.js";
import { SimulatedInference } from "../../origin/simulated.js";
import { Stamps } from "../../origin/simulatedStamps.js";
import { greedy } from "../../scripts/bench/greedy.js";
import { serviceClasses } from "../../shared/classes.js";

beforeEach(() => void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] }));
afterEach(() => {
  vi.restoreAllMocks();
  vi.useRealTimers();
});

const microseconds = (text: string): number => {
  expect(text).toMatch(/^ [0-9a-z]+$/);
  return Number.parseInt(text.slice(1), 36);
};

// Any process of the machine reads the same clock, so the time in a token can be held against one's own.
test("a stamp is the machine's monotonic clock", () => {
  const before = Number(process.hrtime.bigint()) / 1_000;
  const stamps = new Stamps();
  const now = microseconds(stamps.at(performance.now()).text);
  const after = Number(process.hrtime.bigint()) / 1_000;
  expect(now).toBeGreaterThanOrEqual(Math.floor(before));
  expect(now).toBeLessThanOrEqual(Math.ceil(after));
  const later = stamps.at(performance.now() + 40);
  expect(microseconds(later.text)).toBe(now + 40_000);
  expect(later).toMatchObject({ ends: [later.text.length], stopped: false });
});

// Open loop: a token is due a step after the one before it, however late the timer was that brought it.
test("tokens are due one step apart, though a timer fires late", () => {
  const inference = new SimulatedInference({ tokensPerSecond: 20, answerTokens: 1_000, slots: 2, contextTokens: 2_000, stamps: true });
  // The loop is held up where this grows: timers are late, and the clock goes on.
  let heldMs = 0;
  const now = performance.now.bind(performance);
  vi.spyOn(performance, "now").mockImplementation(() => now() + heldMs);
  const seen: { dueUs: number; seq: number }[] = [];
  const request: InferenceRequest = {
    ...{
      ...greedy,
      prompt: Int32Array.from([1, 2, 3]),
      maxTokens: 100,
      minTokens: 0,
      ignoreEos: false,
      logitBias: {},
      logprobs: undefined,
    },
    ...{
      format: undefined,
      continueIds: new Int32Array(),
      class: "chat",
      deadlines: serviceClasses.chat,
      tenant: "tenant-1",
      tenantWeight: 1,
    },
  };
  const ignore = (): void => {};
  inference.submit(request, {
    tokens: ({ seq, text, ids }) => seen.push({ dueUs: microseconds(text), seq: ids.length === 1 ? seq : Number.NaN }),
    ...{ queued: ignore, finished: ignore, failed: ignore },
  });
  vi.advanceTimersByTime(500);
  const before = seen.length;
  heldMs = 110;
  vi.advanceTimersByTime(2);
  expect(seen.length - before).toBeGreaterThanOrEqual(2);
  vi.advanceTimersByTime(500);
  expect(seen.map(({ seq }) => seq)).toEqual(seen.map((_, index) => index + 1));
  expect(seen.length).toBeGreaterThanOrEqual(21);
  const gaps = seen.slice(1).map(({ dueUs }, index) => dueUs - (seen[index] as { dueUs: number }).dueUs);
  for (const gap of gaps) expect(Math.abs(gap - 50_000)).toBeLessThanOrEqual(1);
});
