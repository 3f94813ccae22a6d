import fc from "fast-check";
import { expect, test } from "vitest";
import { Response } from "../../client/response.js";
import { Digest } from "../../shared/digest.js";
import { Op, type ServerMessage } from "../../shared/protocol.js";

const utf8 = new TextEncoder();
const timings = { queueMs: 1, prefillMs: 2, decodeMs: 3 };

function done(text: string, seq: number): ServerMessage {
  const digest = new Digest();
  digest.update(utf8.encode(text));
  return [Op.DONE, 1, seq, "stop", digest.bytes, digest.value, { promptTokens: 3, cachedTokens: 0, completionTokens: seq }, timings];
}

async function read(response: Response): Promise<string[]> {
  const deltas: string[] = [];
  for await (const delta of response) deltas.push(delta);
  return deltas;
}

// However the origin splits, merges and repeats TOKENS, the reader sees each token's text once and in order.
test("any split and duplication of TOKENS yields the text once", async () => {
  const token = fc.string({ unit: "grapheme", maxLength: 6 });
  const frames = fc.array(fc.tuple(fc.array(token, { minLength: 1, maxLength: 4 }), fc.nat(3)), { maxLength: 30 });
  await fc.assert(
    fc.asyncProperty(frames, fc.boolean(), async (sizes, readsMeanwhile) => {
      const response = new Response(() => {});
      const reading = readsMeanwhile ? read(response) : undefined;
      const sent: ServerMessage[] = [];
      let seq = 0;
      let text = "";
      for (const [tokens, repeats] of sizes) {
        seq += tokens.length;
        text += tokens.join("");
        sent.push([Op.TOKENS, 1, seq, tokens.join(""), 0]);
        response.apply(sent.at(-1) as ServerMessage);
        for (let again = 0; again < repeats; again++) response.apply(sent[Math.floor((again * sent.length) / 3)] as ServerMessage);
        if (readsMeanwhile) await Promise.resolve();
      }
      response.apply(done(text, seq));
      expect((await (reading ?? read(response))).join("")).toBe(text);
      expect(response.text).toBe(text);
      expect(await response.done).toEqual({ reason: "stop", usage: { promptTokens: 3, cachedTokens: 0, completionTokens: seq }, timings });
    }),
    { numRuns: 200 },
  );
});

// A reader that comes late gets everything that waits in one piece, and a second reader gets it again.
test("pulling takes all that waits", async () => {
  const response = new Response(() => {});
  response.apply([Op.TOKENS, 1, 1, "a", 0]);
  response.apply([Op.TOKENS, 1, 2, "b", 0]);
  response.apply(done("ab", 2));
  expect(await read(response)).toEqual(["ab"]);
  expect(await read(response)).toEqual(["ab"]);
});

// LOGPROBS may come twice, as any frame, and in parts.
test("log-probabilities are kept once, one a token", () => {
  const response = new Response(() => {});
  response.apply([Op.TOKENS, 1, 3, "abc", 0]);
  const first: ServerMessage = [
    Op.LOGPROBS,
    1,
    2,
    [
      [5, -0.5, 9, -0.25],
      [6, -1, 6, -1],
    ],
  ];
  for (const message of [first, first, [Op.LOGPROBS, 1, 3, [[7, -2, 8, -1]]] as const]) response.apply(message);
  expect(response.logprobs).toEqual([
    { id: 5, logprob: -0.5, top: [{ id: 9, logprob: -0.25 }] },
    { id: 6, logprob: -1, top: [{ id: 6, logprob: -1 }] },
    { id: 7, logprob: -2, top: [{ id: 8, logprob: -1 }] },
  ]);
});

// Text that was lost or changed on the way is never passed off as the answer.
test.each([
  ["a lost frame", "ab"],
  ["a changed letter", "abd"],
])("%s is told", async (_, sent) => {
  const response = new Response(() => {});
  response.apply([Op.TOKENS, 1, 3, sent, 0]);
  response.apply(done("abc", 3));
  await expect(response.done).rejects.toMatchObject({ code: "answer_damaged", message: expect.stringContaining("arrived damaged") });
  await expect(read(response)).rejects.toMatchObject({ code: "answer_damaged" });
  expect(response.text).toBe(sent);
});

// An error comes after the text that had arrived, and the text stays.
test("an ERROR ends the answer behind its text", async () => {
  const response = new Response(() => {});
  response.apply([Op.TOKENS, 1, 1, "half", 0]);
  response.apply([Op.ERROR, 1, "draining", "the origin is stopping", 1_500]);
  const deltas: string[] = [];
  const reading = (async () => {
    for await (const delta of response) deltas.push(delta);
  })();
  await expect(reading).rejects.toMatchObject({ code: "draining", message: "the origin is stopping", retryAfterMs: 1_500, status: 503 });
  expect(deltas).toEqual(["half"]);
  expect(response.ended).toBe(true);
});

// Whoever leaves the loop wants no more; whoever reads to the end has nothing to cancel.
test("leaving the loop early cancels, once", async () => {
  let cancels = 0;
  const response = new Response(() => cancels++);
  response.apply([Op.TOKENS, 1, 1, "a", 0]);
  for await (const _ of response) break;
  response.cancel();
  expect(cancels).toBe(1);
  response.apply(done("a", 1));
  response.cancel();
  expect(cancels).toBe(1);
});

// The place in the queue is told each time it changes, and what STARTED says can be read.
test("STARTED and QUEUED are told", () => {
  const response = new Response(() => {});
  const places: number[] = [];
  response.onQueued = (place) => places.push(place);
  response.apply([Op.STARTED, 1, "answer-7", 40, 2, { waitMs: 70 }]);
  for (const place of [3, 2, 1]) response.apply([Op.QUEUED, 1, place]);
  expect(places).toEqual([3, 2, 1]);
  expect([response.id, response.promptTokens, response.droppedTurns, response.admission]).toEqual(["answer-7", 40, 2, { waitMs: 70 }]);
});
