/** A subscriber's place, credit and pace, with a clock that stands still until it is moved. */
import { beforeEach, expect, test, vi } from "vitest";
import { bounds } from "../../origin/bounds.js";
import { ResponseLog } from "../../origin/log.js";
import { FrameClock } from "../../origin/pacing.js";
import { type Subscriber, Subscription, type SubscriptionOptions } from "../../origin/subscription.js";
import { limits } from "../../shared/limits.js";

let log: ResponseLog;
let told: unknown[];
let isFull: boolean;
let nowMs: number;

beforeEach(() => {
  log = new ResponseLog();
  told = [];
  isFull = false;
  nowMs = 1_000;
});

const subscriber: Subscriber = {
  started: () => {},
  resumed: () => {},
  queued: () => {},
  tokens: (seq, text, flags, ids) => told.push(ids ? [seq, text, flags, ids] : [seq, text, flags]),
  truncated: () => {},
  done: () => {},
  failed: (error) => told.push(error.code),
  handedOff: () => {},
  isFull: () => isFull,
};

function subscribe(options: Partial<SubscriptionOptions> = {}): Subscription {
  const all = { from: 0, creditSeq: 1e9, flushEveryMs: 0, wantsIds: false, ...options };
  return new Subscription(subscriber, log, all, new FrameClock(), () => nowMs);
}

function say(...texts: string[]): void {
  for (const text of texts) log.append({ seq: log.seq + 1, text, ids: [log.seq + 7], ends: [new TextEncoder().encode(text).length] });
}

test("voice gets each token at once", () => {
  const subscription = subscribe();
  for (const text of ["a", "b"]) {
    say(text);
    subscription.grown();
  }
  expect(told).toEqual([
    [1, "a", 0],
    [2, "b", 0],
  ]);
});

// The first token of a quiet moment goes at once, what follows within a display frame goes with that frame.
test("chat gets a message a display frame at most", () => {
  vi.useFakeTimers();
  try {
    const subscription = subscribe({ flushEveryMs: 16, wantsIds: true });
    for (const text of ["a", "b", "c"]) {
      say(text);
      subscription.grown();
    }
    expect(told).toEqual([[1, "a", 0, [7]]]);
    nowMs += 16;
    vi.advanceTimersByTime(16);
    expect(told.slice(1)).toEqual([[3, "bc", 0, [8, 9]]]);
    expect(vi.getTimerCount()).toBe(0);
    nowMs += 20;
    say("d");
    subscription.grown();
    expect(told.at(-1)).toEqual([4, "d", 0, [10]]);
  } finally {
    vi.useRealTimers();
  }
});

test("nothing goes beyond the credit, which only grows; the last word comes after all tokens", () => {
  const subscription = subscribe({ creditSeq: 2 });
  say("a", "b", "c");
  subscription.grown();
  expect(told).toEqual([[2, "ab", 0]]);
  subscription.end(() => told.push("done"));
  subscription.credit(1);
  expect(told).toHaveLength(1);
  subscription.credit(3);
  expect(told.slice(1)).toEqual([[3, "c", 0], "done"]);
  expect(subscription.isOver).toBe(true);
});

test("an answer that is over waits for credit as long as one that runs", () => {
  const subscription = subscribe({ creditSeq: 1 });
  say("a", "b");
  subscription.end(() => told.push("done"));
  subscription.tick(nowMs + limits.parkedMs);
  expect(told).toEqual([[1, "a", 0]]);
  subscription.tick(nowMs + limits.parkedMs + 1);
  expect(told).toEqual([[1, "a", 0], "credit_exhausted"]);
});

// What a full socket does not take waits in the log: the time counts, and the tokens come together.
test("a full socket gets what has gathered, and its wait is told", () => {
  const subscription = subscribe();
  isFull = true;
  say("a");
  subscription.grown();
  nowMs += 70;
  say("b");
  subscription.grown();
  expect(told).toEqual([]);
  isFull = false;
  nowMs += 30;
  subscription.flush();
  expect(told).toEqual([[2, "ab", 0]]);
  expect(subscription.outboxMs).toBe(100);
});

test("a message is bounded, and ends with its sentence", () => {
  const subscription = subscribe();
  say("It", " turns", ".", " So");
  subscription.grown();
  expect(told).toEqual([
    [3, "It turns.", 0],
    [4, " So", 1],
  ]);
  told = [];
  for (let index = 0; index < bounds.tokensAFrameMax + 10; index++) say("x");
  subscription.grown();
  expect(told.map((each) => (each as [number])[0])).toEqual([4 + bounds.tokensAFrameMax, 14 + bounds.tokensAFrameMax]);
});

test("what cannot wait is said at once, after what the credit allows", () => {
  const subscription = subscribe({ creditSeq: 1 });
  say("a", "b");
  subscription.break(() => told.push("handed off"));
  expect(told).toEqual([[1, "a", 0], "handed off"]);
  subscription.credit(9);
  subscription.grown();
  expect(told).toHaveLength(2);
});
