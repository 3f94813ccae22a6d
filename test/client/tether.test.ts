import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { clientLimits } from "../../client/limits.js";
import { Op, type ServerMessage } from "../../shared/protocol.js";
import { all, answering, done, started, tokens } from "./support.js";

// Before it was taken, an ERROR is a refusal, of which its keeper makes what can be made.
test("a refusal is not the end", () => {
  const { response, join, hear, left } = answering();
  join();
  hear([Op.ERROR, 1, "draining", "the origin is stopping", 0]);
  expect(left).toMatchObject([{ code: "draining" }]);
  expect(response.ended).toBe(false);
});

// An answer has one stream at a time: what another one brings late is not its own.
test("a stream that was left is not heard", () => {
  const { response, join, hear } = answering();
  join();
  hear(started, tokens(1, "a"));
  hear([Op.TOKENS, 2, 2, "b", 0, [2]], [Op.HANDOFF, 2, 2], [Op.ERROR, 2, "internal", "the engine failed", 0]);
  response.tether.lost();
  hear(tokens(2, "c"));
  expect(response).toMatchObject({ text: "a", ended: false, attempts: 1 });
});

describe("what is sent", () => {
  test("a START can be sent again and be the same", () => {
    const { join } = answering({ maxTokens: 9 });
    expect(join().sent).toEqual([[Op.START, 1, [["user", "Why?"]], { maxTokens: 9, key: "k", seed: 5, tokenIds: true, attempt: 1 }]]);
  });

  // Whether the first arrived is unknown, so the second says where it went.
  test("a START that nobody answered names where it was sent", () => {
    const { response, join } = answering();
    join();
    response.tether.lost();
    expect(join().sent[0]).toMatchObject([Op.START, 1, {}, { attempt: 1, sentTo: "epoch-1" }]);
  });

  test("what was taken is resumed behind the last token", () => {
    const { response, join, hear } = answering();
    join();
    hear(started, tokens(3, "abc"));
    response.tether.lost();
    expect(join().sent).toEqual([[Op.RESUME, 1, "epoch-1", "answer-7", 3, all]]);
  });

  // A second attempt is a new one: nothing of it was sent anywhere before.
  test("a restart carries the ids of all tokens", () => {
    const { response, join, hear, left } = answering({ maxTokens: 9 });
    join();
    hear(started, tokens(1, "a"), tokens(2, "b"), [Op.GONE, 1, "epoch-1"]);
    expect(left).toEqual(["gone"]);
    expect(response.tether.restart()).toBe(true);
    const options = { maxTokens: 9, key: "k", seed: 5, tokenIds: true, attempt: 2, continueIds: [1, 2] };
    expect(join().sent).toEqual([[Op.START, 1, [["user", "Why?"]], options]]);
    hear(started, tokens(3, "c"), done("abc", 3));
    expect(response).toMatchObject({ text: "abc", attempts: 2, reason: "stop" });
  });

  test("what cannot be continued is not begun anew behind the reader's back", async () => {
    const { response, join, hear } = answering();
    join();
    hear(started, [Op.TOKENS, 1, 2, "ab", 0], [Op.GONE, 1, "epoch-1"]);
    expect(response.tether.restart()).toBe(false);
    await expect(response.done).rejects.toMatchObject({ code: "connection_lost", message: expect.stringContaining("without the ids") });
    const formed = answering({ format: { kind: "regex", text: "a+" } });
    formed.join();
    formed.hear(started, tokens(1, "a"), [Op.GONE, 1, "epoch-1"]);
    expect(formed.response.tether.restart()).toBe(false);
    await expect(formed.response.done).rejects.toMatchObject({ message: expect.stringContaining("of a format") });
  });
});

describe("stopping", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  // Nothing of it is anywhere, so there is nobody to wait for.
  test("what was not sent stops at once", async () => {
    const { response, left } = answering();
    response.cancel();
    expect(await response.done).toMatchObject({ reason: "cancelled", usage: { completionTokens: 0 }, timings: undefined, slo: undefined });
    expect(left).toEqual(["over"]);
    expect(vi.getTimerCount()).toBe(0);
  });

  test("without a connection it is said on the next one", async () => {
    const { response, join, hear } = answering();
    join();
    hear(started, tokens(1, "a"));
    response.tether.lost();
    response.cancel();
    expect(join().sent.map(([op]) => op)).toEqual([Op.RESUME, Op.CANCEL]);
    hear([Op.RESUMED, 1, "answer-7", 1, 40, 2], done("a", 1, "cancelled"));
    expect((await response.done).reason).toBe("cancelled");
    expect(vi.getTimerCount()).toBe(0);
  });

  // The origin is dead: whoever wanted it to stop has what was wanted, and nothing is begun again.
  test.each<[string, ServerMessage]>([
    ["GONE", [Op.GONE, 1, "epoch-1"]],
    ["HANDOFF", [Op.HANDOFF, 1, 1]],
    ["EXPIRED", [Op.EXPIRED, 1, 9, "stop"]],
  ])("%s confirms it", async (_, message) => {
    const { response, join, hear, left } = answering();
    join();
    hear(started, tokens(1, "a"));
    response.cancel();
    hear(message);
    expect(await response.done).toMatchObject({ reason: "cancelled", usage: { promptTokens: 40, completionTokens: 1 } });
    expect(left).toEqual(["over"]);
  });

  // A reader waits no longer than this; the origin is still told when there is a way.
  test("nothing hangs", async () => {
    const { response, join, hear, left } = answering();
    join();
    hear(started, tokens(1, "a"));
    response.tether.lost();
    response.cancel();
    vi.advanceTimersByTime(clientLimits.cancelMs);
    await expect(response.done).rejects.toMatchObject({ code: "connection_timeout", message: expect.stringContaining("5000 ms") });
    expect(left).toEqual([]);
    expect(join().sent.map(([op]) => op)).toEqual([Op.RESUME, Op.CANCEL]);
    hear([Op.RESUMED, 1, "answer-7", 1, 40, 2], done("a", 1, "cancelled"));
    expect(left).toEqual(["over"]);
    expect(response.error?.code).toBe("connection_timeout");
  });
});

describe("truncating", () => {
  // The user heard so much: the text stays, the conversation goes on from what was heard.
  test("an answer that runs ends there", async () => {
    const { response, join, hear } = answering();
    const { sent } = join();
    hear(started, tokens(2, "für dich"));
    response.truncate(4);
    expect(sent[1]).toEqual([Op.TRUNCATE, 1, 4]);
    expect([response.heard, response.truncatedAt]).toEqual(["für", undefined]);
    hear([Op.TRUNCATED, 1, 1, 4], done("für dich", 2, "cancelled"));
    expect(response).toMatchObject({ text: "für dich", heard: "für", truncatedAt: 4, reason: "cancelled" });
  });

  test("others may truncate too, and shorter", () => {
    const { response, join, hear } = answering();
    join();
    hear(started, tokens(2, "abcdef"), [Op.TRUNCATED, 1, 2, 5], [Op.TRUNCATED, 1, 1, 2], done("abcdef", 2));
    expect(response).toMatchObject({ truncatedAt: 2, heard: "ab" });
    hear([Op.TRUNCATED, 1, 1, 1]);
    expect(response.truncatedAt).toBe(1);
  });

  // After the end it is said on the stream that the answer came by or, if that is gone, on a new one.
  test("an answer that is over is truncated all the same", () => {
    const { response, join, hear, left, rejoins } = answering();
    const first = join();
    hear(started, tokens(2, "abcdef"), done("abcdef", 2));
    response.truncate(5);
    expect(first.sent[1]).toEqual([Op.TRUNCATE, 1, 5]);
    first.ended = new Error("gone");
    response.truncate(3);
    expect(rejoins()).toBe(1);
    const second = join();
    expect(second.sent).toEqual([
      [Op.RESUME, 1, "epoch-1", "answer-7", 2, all],
      [Op.TRUNCATE, 1, 3],
    ]);
    hear([Op.RESUMED, 1, "answer-7", 2, 40, 2], [Op.TRUNCATED, 1, 1, 3], done("abcdef", 2));
    expect([response.truncatedAt, response.heard, left]).toEqual([3, "abc", ["over", "over"]]);
    expect(join().sent.map(([op]) => op)).toEqual([Op.RESUME]);
  });

  test("what is no number of bytes is refused", () => {
    const { response } = answering();
    for (const bytes of [-1, 1.5, Number.NaN]) expect(() => response.truncate(bytes)).toThrow(RangeError);
  });
});
