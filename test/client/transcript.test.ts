import fc from "fast-check";
import { expect, test } from "vitest";
import { beginning, Transcript } from "../../client/transcript.js";
import { Digest } from "../../shared/digest.js";
import { type Done, Op, type ServerMessage, type Tokens } from "../../shared/protocol.js";
import { timings } from "../support/scriptedEdge.js";

const utf8 = new TextEncoder();

function done(text: string, seq: number): Done {
  const digest = new Digest();
  digest.update(utf8.encode(text));
  const usage = { promptTokens: 3, cachedTokens: 0, completionTokens: seq, continuedTokens: 0 };
  return [Op.DONE, 1, seq, "stop", digest.bytes, digest.value, usage, timings, { lateTokens: 0, good: true }];
}

// A restart that is cancelled before its origin has computed what was brought to it covers less than came: nothing there is damaged.
test("a restart that was cancelled at once is not damaged", () => {
  const transcript = new Transcript(false, { text: "abc", seq: 3, ids: [1, 2, 3] });
  const [op, stream, , , ...rest] = done("", 0);
  expect(transcript.damage([op, stream, 0, "cancelled", ...rest])).toBeUndefined();
  expect(transcript.damage([op, stream, 0, "stop", ...rest])).toMatch(/the origin sent 0 bytes/);
  expect(transcript.damage([op, stream, 3, "cancelled", ...rest])).toMatch(/the origin sent 0 bytes/);
});

// However the origin splits, merges and repeats TOKENS, each token's text is there once and in order.
test("any split and duplication of TOKENS yields the text once", () => {
  const token = fc.string({ unit: "grapheme", maxLength: 6 });
  const frames = fc.array(fc.tuple(fc.array(token, { minLength: 1, maxLength: 4 }), fc.nat(3)), { maxLength: 30 });
  fc.assert(
    fc.property(frames, (sizes) => {
      const transcript = new Transcript(false);
      const sent: Tokens[] = [];
      let seq = 0;
      let text = "";
      for (const [tokens, repeats] of sizes) {
        const ids = tokens.map((_, index) => seq + index + 1);
        seq += tokens.length;
        text += tokens.join("");
        sent.push([Op.TOKENS, 1, seq, tokens.join(""), 0, ids]);
        expect(transcript.take(sent.at(-1) as Tokens)).toBe(true);
        for (let again = 0; again < repeats; again++)
          expect(transcript.take(sent[Math.floor((again * sent.length) / 3)] as Tokens)).toBe(false);
      }
      expect(transcript.text).toBe(text);
      expect(transcript.ids).toEqual(Array.from({ length: seq }, (_, index) => index + 1));
      expect(transcript.damage(done(text, seq))).toBeUndefined();
    }),
    { numRuns: 200 },
  );
});

// Text that was lost or changed on the way is never passed off as the answer.
test.each([
  ["a lost frame", "ab"],
  ["a changed letter", "abd"],
])("%s is told", (_, sent) => {
  const transcript = new Transcript(false);
  transcript.take([Op.TOKENS, 1, 3, sent, 0]);
  expect(transcript.damage(done("abc", 3))).toMatch(/the origin sent 3 bytes \(\w{8}\), but \d bytes \(\w{8}\) came/);
});

// Whoever is to continue it needs every id.
test("an answer whose ids are not all there has none", () => {
  const transcript = new Transcript(false);
  transcript.take([Op.TOKENS, 1, 1, "a", 0, [7]]);
  expect(transcript.ids).toEqual([7]);
  transcript.take([Op.TOKENS, 1, 2, "b", 0]);
  expect(transcript.ids).toBeUndefined();
});

test("what was kept goes on", () => {
  const first = new Transcript(false);
  first.take([Op.TOKENS, 1, 2, "für ", 0, [4, 5]]);
  const second = new Transcript(false, first.kept);
  second.take([Op.TOKENS, 1, 2, "für ", 0, [4, 5]]);
  second.take([Op.TOKENS, 1, 3, "dich", 0, [6]]);
  expect([second.text, second.ids, second.damage(done("für dich", 3))]).toEqual(["für dich", [4, 5, 6], undefined]);
});

const rows = (from: number, to: number): number[][] => Array.from({ length: to - from + 1 }, (_, at) => [from + at, -0.5, 9, -0.25]);

// LOGPROBS may come twice, as any frame, and in parts; a part may reach back into what came before.
test("log-probabilities are kept once, one a token", () => {
  const transcript = new Transcript(true);
  transcript.take([Op.TOKENS, 1, 3, "abc", 0]);
  expect([transcript.seq, transcript.text]).toEqual([0, ""]);
  const first = [Op.LOGPROBS, 1, 2, rows(1, 2)] as const;
  for (const message of [first, first, [Op.LOGPROBS, 1, 3, rows(2, 3)] as const]) transcript.take(message);
  expect(transcript.logprobs).toEqual([1, 2, 3].map((id) => ({ id, logprob: -0.5, top: [{ id: 9, logprob: -0.25 }] })));
  expect([transcript.seq, transcript.text]).toEqual([3, "abc"]);
});

// Wherever the socket is cut between tokens and their log-probabilities, resuming behind the last token brings each row once.
test("no log-probability is lost with a socket", () => {
  const cuts = fc.array(fc.nat(7), { maxLength: 6 });
  fc.assert(
    fc.property(cuts, fc.integer({ min: 1, max: 3 }), (messagesUntilCut, tokensAFrame) => {
      const transcript = new Transcript(true);
      const last = 9;
      for (const cut of [...messagesUntilCut, 100]) {
        transcript.drop();
        const replay: ServerMessage[] = [];
        for (let from = transcript.seq; from < last; from += tokensAFrame) {
          const to = Math.min(from + tokensAFrame, last);
          replay.push([Op.TOKENS, 1, to, "x".repeat(to - from), 0], [Op.LOGPROBS, 1, to, rows(from + 1, to)]);
        }
        for (const message of replay.slice(0, cut)) transcript.take(message as Tokens);
      }
      expect(transcript.text).toBe("x".repeat(last));
      expect(transcript.logprobs.map(({ id }) => id)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }),
  );
});

// Tokens that come without rows, as those of a continued answer, count as soon as something follows them.
test("tokens without log-probabilities are not held for ever", () => {
  const transcript = new Transcript(true);
  transcript.take([Op.TOKENS, 1, 1, "a", 0]);
  expect(transcript.take([Op.TOKENS, 1, 2, "b", 0])).toBe(true);
  expect(transcript.settle()).toBe(true);
  expect(transcript.text).toBe("ab");
  expect(transcript.settle()).toBe(false);
});

// Cuts fall between code points, and are the longest that fit.
test("a beginning is whole code points", () => {
  fc.assert(
    fc.property(fc.string({ unit: "grapheme" }), fc.nat(40), (text, bytesMax) => {
      const cut = beginning(text, bytesMax);
      const rest = text.slice(cut.length);
      expect(text.startsWith(cut)).toBe(true);
      const next = String.fromCodePoint(rest.codePointAt(0) ?? 32);
      expect(utf8.encode(cut).length).toBeLessThanOrEqual(bytesMax);
      if (rest !== "") expect(utf8.encode(cut + next).length).toBeGreaterThan(bytesMax);
    }),
  );
});
