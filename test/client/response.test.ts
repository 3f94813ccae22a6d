import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { clientLimits } from "../../client/limits.js";
import { Op } from "../../shared/protocol.js";
import { timings } from "../support/scriptedEdge.js";
import { answering, done, read, slo, started, tokens, usage } from "./support.js";

// A reader that comes late gets everything that waits in one piece, and a second reader gets it again.
test("pulling takes all that waits", async () => {
  const { response, join, hear } = answering();
  join();
  hear(started, tokens(1, "a"), tokens(2, "b"), done("ab", 2));
  const deltas: string[] = [];
  for await (const delta of response) deltas.push(delta);
  expect(deltas).toEqual(["ab"]);
  expect(await read(response)).toBe("ab");
  expect(await response.done).toEqual({ reason: "stop", usage, timings, slo });
  expect(response).toMatchObject({ id: "answer-7", epoch: "epoch-1", seq: 2, attempts: 1, slo, ended: true, error: undefined });
});

// Text that was lost or changed on the way is never passed off as the answer.
test("damage is told", async () => {
  const { response, join, hear } = answering();
  join();
  hear(started, tokens(3, "abd"), done("abc", 3));
  await expect(response.done).rejects.toMatchObject({ code: "answer_damaged", message: expect.stringContaining("arrived damaged") });
  await expect(read(response)).rejects.toMatchObject({ code: "answer_damaged" });
  expect(response.text).toBe("abd");
});

// An error comes after the text that had arrived, and the text stays.
test("an ERROR ends the answer behind its text", async () => {
  const { response, join, hear, left } = answering();
  join();
  hear(started, tokens(1, "half"), [Op.ERROR, 1, "internal", "the engine fell over", 1_500]);
  const deltas: string[] = [];
  const reading = (async () => {
    for await (const delta of response) deltas.push(delta);
  })();
  await expect(reading).rejects.toMatchObject({ code: "internal", message: "the engine fell over", retryAfterMs: 1_500, status: 500 });
  expect([deltas, response.ended, left]).toEqual([["half"], true, ["over"]]);
});

// Whoever leaves the loop wants no more; whoever reads to the end has nothing to cancel.
test("leaving the loop early cancels, once", async () => {
  const { response, join, hear } = answering();
  const { sent } = join();
  hear(started, tokens(1, "a"));
  for await (const _ of response) break;
  response.cancel();
  hear(done("a", 1, "cancelled"));
  response.cancel();
  expect(sent.map(([op]) => op)).toEqual([Op.START, Op.CANCEL]);
  expect(response.reason).toBe("cancelled");
});

// The place in the queue is told each time it changes, and what STARTED says can be read.
test("STARTED and QUEUED are told", () => {
  const { response, join, hear } = answering();
  const places: number[] = [];
  response.onQueued = (place) => places.push(place);
  join();
  hear(started);
  for (const place of [3, 2, 1]) hear([Op.QUEUED, 1, place]);
  expect(places).toEqual([3, 2, 1]);
  expect(response).toMatchObject({ id: "answer-7", promptTokens: 40, droppedTurns: 2, admission: { waitMs: 70 } });
});

describe("credit", () => {
  // What arrived is not consumed: only whoever comes back for more is done with what it had.
  test("it follows the pull", async () => {
    const { response, join, hear } = answering({}, { window: 4 });
    const { sent } = join();
    expect(sent[0]).toMatchObject([Op.START, 1, {}, { creditSeq: 4 }]);
    const pulls = response[Symbol.asyncIterator]();
    hear(started, tokens(1, "a"), tokens(2, "b"));
    await pulls.next();
    expect(sent.length).toBe(1);
    hear(tokens(3, "c"));
    await pulls.next();
    expect(sent.slice(1)).toEqual([[Op.CREDIT, 1, 6]]);
    response.tether.lost();
    expect(join().sent).toEqual([[Op.RESUME, 1, "epoch-1", "answer-7", 3, 6]]);
  });

  // Tokens without text are nothing that a reader could come back for.
  test("tokens without text are consumed as they come", async () => {
    const { response, join, hear } = answering({}, { window: 2 });
    const { sent } = join();
    const pull = response[Symbol.asyncIterator]().next();
    hear(started, tokens(2, ""));
    await vi.waitFor(() => expect(sent.slice(1)).toEqual([[Op.CREDIT, 1, 4]]));
    hear(tokens(3, "x"));
    expect(await pull).toEqual({ value: "x", done: false });
  });

  test("whoever reads the text or awaits the end takes everything", () => {
    for (const take of ["text", "done"] as const) {
      const { response, join, hear } = answering({}, { window: 4 });
      const { sent } = join();
      hear(started, tokens(4, "abcd"));
      expect(sent.length).toBe(1);
      void response[take];
      hear(tokens(6, "ef"));
      expect(sent.slice(1)).toEqual([
        [Op.CREDIT, 1, 8],
        [Op.CREDIT, 1, 10],
      ]);
    }
  });

  // An iterator in use is the reader; glances at the text do not speak for it.
  test("an iterator in use is the only reader", async () => {
    const { response, join, hear } = answering({}, { window: 4 });
    const { sent } = join();
    hear(started, tokens(1, "a"));
    await response[Symbol.asyncIterator]().next();
    expect(response.text).toBe("a");
    hear(tokens(4, "bcd"));
    expect(sent.length).toBe(1);
  });

  test("a window that is none ends the answer", async () => {
    expect(() => answering({}, { window: 0 })).toThrow("window is 0");
  });
});

describe("in a page", () => {
  const page = Object.assign(new EventTarget(), { hidden: false });
  const show = (isShown: boolean): void => {
    page.hidden = !isShown;
    page.dispatchEvent(new Event("visibilitychange"));
  };
  beforeEach(() => void vi.stubGlobal("document", page));
  afterEach(() => void vi.unstubAllGlobals());

  // No timer is involved: events of the page and of the socket are all.
  test("the window stands still while it is hidden, where that was asked for", async () => {
    vi.useFakeTimers();
    try {
      show(false);
      const { response, join, hear } = answering({}, { window: 4, pauseWhenHidden: true });
      const { sent } = join();
      void response.text;
      hear(started, tokens(4, "abcd"));
      expect(sent).toMatchObject([[Op.START, 1, {}, { creditSeq: 4 }]]);
      show(true);
      expect(sent.slice(1)).toEqual([[Op.CREDIT, 1, 8]]);
      hear(done("abcd", 4));
      expect(vi.getTimerCount()).toBe(0);
    } finally {
      vi.useRealTimers();
    }
  });

  test("a hidden page without it reads on, and one with it has a window", () => {
    show(false);
    const plain = answering();
    expect(plain.join().sent[0]?.[3]).not.toHaveProperty("creditSeq");
    const pausing = answering({}, { pauseWhenHidden: true });
    expect(pausing.join().sent[0]).toMatchObject([Op.START, 1, {}, { creditSeq: clientLimits.hiddenWindowTokens }]);
  });
});

describe("time", () => {
  let nowMs = 0;
  beforeEach(() => {
    nowMs = 1_000;
    vi.spyOn(performance, "now").mockImplementation(() => nowMs);
  });
  afterEach(() => void vi.restoreAllMocks());

  // 100 ms passed here; the origin accounts for 0.5 in the queue, 2 of prefill and 0.25 in the outbox.
  test("what the origin does not account for is the network's", () => {
    const { response, join, hear } = answering();
    nowMs += 7;
    join();
    nowMs += 100;
    hear(started, tokens(1, "a"));
    nowMs += 50;
    hear(done("a", 1));
    expect(response.measures).toMatchObject({ firstTokenMs: 107, networkMs: 97.25 });
  });

  // Durations of two machines are compared, never their clocks, but they may disagree by more than the way takes.
  test("it is never negative", () => {
    const { response, join, hear } = answering();
    join();
    hear(started, tokens(1, "a"), done("a", 1));
    expect(response.measures.networkMs).toBe(0);
  });

  // The second origin's queue and prefill say nothing of a first token that came from the first.
  test("it is not claimed of an answer whose first token came from another attempt", () => {
    const { response, join, hear } = answering();
    join();
    nowMs += 20;
    hear(started, tokens(1, "a"), [Op.GONE, 1, "epoch-1"]);
    response.tether.restart();
    join();
    hear(started, tokens(2, "b"), done("ab", 2));
    expect(response.measures).toMatchObject({ firstTokenMs: 20, networkMs: undefined });
  });
});

describe("kept", () => {
  // JSON, and back: the text is there at once, and what follows goes on from it.
  test("an answer goes on in another page", async () => {
    const first = answering({ maxTokens: 9 }, { window: 4 });
    first.join();
    first.hear(started, tokens(2, "für "));
    const kept = JSON.parse(JSON.stringify(first.response.kept()));
    const second = answering({}, kept.reading, kept);
    expect(second.response).toMatchObject({ text: "für ", seq: 2, id: "answer-7", epoch: "epoch-1", promptTokens: 40, droppedTurns: 2 });
    expect(second.join().sent).toEqual([[Op.RESUME, 1, "epoch-1", "answer-7", 2, 6]]);
    second.hear([Op.RESUMED, 1, "answer-7", 3, 40, 2], tokens(3, "dich"), done("für dich", 3));
    expect(await read(second.response)).toBe("für dich");
    expect(second.response.measures).toMatchObject({ firstTokenMs: undefined, networkMs: undefined, tokens: 3 });
  });

  test("so does one that was not taken yet, and one that is to be restarted", () => {
    const first = answering({ maxTokens: 9 });
    first.join();
    const unanswered = answering({ maxTokens: 9 }, {}, JSON.parse(JSON.stringify(first.response.kept())));
    expect(unanswered.join().sent[0]).toMatchObject([Op.START, 1, {}, { key: "k", sentTo: "epoch-1" }]);
    first.hear(started, tokens(1, "a"), tokens(2, "b"));
    const dead = answering({ maxTokens: 9 }, {}, JSON.parse(JSON.stringify(first.response.kept())));
    dead.join();
    dead.hear([Op.GONE, 1, "epoch-1"]);
    dead.response.tether.restart();
    expect(dead.join().sent[0]).toMatchObject([Op.START, 1, {}, { attempt: 2, continueIds: [1, 2] }]);
  });
});
