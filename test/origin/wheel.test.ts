/** The wheel serves each item once a step, evenly spread, by one timer that is there only while it is needed. */
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Wheel } from "../../origin/wheel.js";

beforeEach(() => void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] }));
afterEach(() => void vi.useRealTimers());

/** A wheel that takes down who was served when, in milliseconds since it began. */
function recorded(stepMs: number, isSpread = true) {
  const begun = performance.now();
  const served: { item: number; atMs: number }[] = [];
  const wheel = new Wheel<number>(
    stepMs,
    isSpread,
    (item) => served.push({ item, atMs: performance.now() - begun }),
    () => false,
  );
  const add = (count: number): void => {
    for (let item = 0; item < count; item++) wheel.add(item);
    wheel.wake();
  };
  return { wheel, served, add };
}

const countOf = (list: readonly number[]): Map<number, number> => {
  const counts = new Map<number, number>();
  for (const value of list) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
};

test("each item is served once a step, and all of them evenly within it", () => {
  const { served, add } = recorded(100);
  add(1_000);
  vi.advanceTimersByTime(1_000);
  const perItem = countOf(served.map(({ item }) => item));
  expect(perItem.size).toBe(1_000);
  for (const times of perItem.values()) expect(Math.abs(times - 10)).toBeLessThanOrEqual(1);
  // 50 ticks of 2 ms a step: 20 items each.
  const perTick = [...countOf(served.map(({ atMs }) => Math.round(atMs))).values()];
  expect(perTick.length).toBeGreaterThan(480);
  for (const count of perTick) expect(Math.abs(count - 20)).toBeLessThanOrEqual(4);
  const [first] = served.filter(({ item }) => item === 7);
  const times = served.filter(({ item }) => item === 7).map(({ atMs }) => atMs - (first?.atMs ?? 0));
  for (const [index, ms] of times.entries()) expect(Math.abs(ms - 100 * index)).toBeLessThanOrEqual(2);
});

test("items that are not spread are served at once", () => {
  const { served, add } = recorded(50, false);
  add(100);
  vi.advanceTimersByTime(175);
  const moments = [...countOf(served.map(({ atMs }) => Math.round(atMs)))];
  expect(moments).toEqual([
    [50, 100],
    [100, 100],
    [150, 100],
  ]);
});

test("a step that is shorter than a timer can be is made up for", () => {
  const { served, add } = recorded(0.2);
  add(3);
  vi.advanceTimersByTime(100);
  expect(Math.abs(served.length - 1_500)).toBeLessThanOrEqual(30);
});

// A process that stood still makes up for what its readers waited for, but not without end: one that is too slow must not fall behind for ever.
test("a timer that fires late is made up for, up to a bound", () => {
  const servedAfter = (stallMs: number): number => {
    const { wheel, served, add } = recorded(10);
    add(5);
    const jump = vi.spyOn(performance, "now").mockReturnValue(performance.now() + stallMs);
    vi.advanceTimersToNextTimer();
    jump.mockRestore();
    wheel.close();
    return served.length;
  };
  expect(servedAfter(100)).toBe(50);
  expect(servedAfter(60_000)).toBe(125);
});

test("there is no timer where there is nobody, and one whoever comes", () => {
  const { wheel, served, add } = recorded(10);
  expect(vi.getTimerCount()).toBe(0);
  add(2);
  expect(vi.getTimerCount()).toBe(1);
  vi.advanceTimersByTime(30);
  wheel.delete(0);
  wheel.delete(1);
  const before = served.length;
  vi.advanceTimersByTime(30);
  expect([vi.getTimerCount(), served.length]).toEqual([0, before]);
  add(1);
  vi.advanceTimersByTime(30);
  expect(served.length).toBeGreaterThan(before);
  wheel.close();
  expect(vi.getTimerCount()).toBe(0);
});

// The last one goes, and in the same breath somebody else wakes the wheel.
test("who wakes it while it serves is not forgotten", () => {
  const ticks: number[] = [];
  const wheel: Wheel<string> = new Wheel<string>(
    10,
    true,
    (item) => {
      wheel.delete(item);
      wheel.wake();
    },
    () => {
      ticks.push(performance.now());
      return false;
    },
  );
  wheel.add("one");
  wheel.wake();
  vi.advanceTimersByTime(10);
  expect([wheel.size, ticks.length, vi.getTimerCount()]).toEqual([0, 2, 0]);
});
