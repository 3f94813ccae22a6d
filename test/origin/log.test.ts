import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Released } from "../../origin/inference.js";
import { ResponseLog } from "../../origin/log.js";
import { Digest } from "../../shared/digest.js";

const utf8 = new TextEncoder();

/** A release of these tokens' texts, which follow token `seq`. */
function released(seq: number, texts: readonly string[]): Released {
  let bytes = 0;
  const ends = texts.map((text) => {
    bytes += utf8.encode(text).length;
    return bytes;
  });
  return { seq: seq + texts.length, text: texts.join(""), ids: texts.map((_, index) => 100 + seq + index), ends };
}

const releases = fc.array(fc.array(fc.string({ unit: "grapheme", maxLength: 12 }), { minLength: 1, maxLength: 4 }), { maxLength: 20 });

// What was said between any two tokens can be said again, also from within what was released at once.
test("the log gives back text and ids between any tokens, its length and its digest", () => {
  fc.assert(
    fc.property(releases, (pieces) => {
      const log = new ResponseLog();
      for (const texts of pieces) log.append(released(log.seq, texts));
      const texts = pieces.flat();
      const bytes = utf8.encode(texts.join(""));
      const digest = new Digest();
      digest.update(bytes);
      expect([log.seq, log.textBytes, log.digest]).toEqual([texts.length, bytes.length, digest.value]);
      for (let from = 0; from <= texts.length; from++)
        for (let to = from; to <= texts.length; to++) {
          expect(log.text(from, to)).toBe(texts.slice(from, to).join(""));
          expect(log.ids(from, to)).toEqual(texts.slice(from, to).map((_, index) => 100 + from + index));
        }
    }),
  );
});

// Cut anywhere, the beginning is whole code points, as many as fit, and the token is the one in which it ends.
test("a cut is the last code point's end that is not beyond", () => {
  fc.assert(
    fc.property(releases, fc.nat(200), (pieces, asked) => {
      const log = new ResponseLog();
      for (const texts of pieces) log.append(released(log.seq, texts));
      const { seq, textBytes } = log.cut(asked);
      const points = [...pieces.flat().join("")];
      const ends = points.map((_, index) => utf8.encode(points.slice(0, index + 1).join("")).length);
      expect(textBytes).toBe([0, ...ends].filter((end) => end <= asked).at(-1));
      expect(utf8.encode(log.beginning(textBytes)).length).toBe(textBytes);
      if (textBytes === 0) expect(seq).toBe(0);
      else {
        expect(utf8.encode(log.text(0, seq)).length).toBeGreaterThanOrEqual(textBytes);
        expect(utf8.encode(log.text(0, seq - 1)).length).toBeLessThan(textBytes);
      }
    }),
  );
});

describe("tokens are appended once, and in order", () => {
  test.each([
    ["again", released(0, ["a"])],
    ["with a gap", { ...released(2, ["a"]) }],
    ["with ends missing", { ...released(1, ["a"]), ends: [] }],
  ])("%s is refused", (_, bad) => {
    const log = new ResponseLog();
    log.append(released(0, ["x"]));
    expect(() => log.append(bad)).toThrow("were appended after token 1");
  });
});

// A message ends where a sentence does, so that its flag speaks of its beginning.
test("reach stops before the token that a sentence's end comes before", () => {
  const log = new ResponseLog();
  log.append(released(0, ["It", " turns", ".", " And", " stops", ".", " Then"]));
  expect([1, 2, 3, 4, 5, 6, 7].filter((seq) => log.endsSentenceBefore(seq))).toEqual([4, 7]);
  expect([log.reach(0, 7), log.reach(2, 7), log.reach(3, 7), log.reach(3, 5), log.reach(6, 7)]).toEqual([3, 3, 6, 5, 7]);
});

// Those that an answer was continued with have none: the rows are those of the last tokens.
test("log-probabilities are kept from the first token that has some", () => {
  const log = new ResponseLog();
  log.append(released(0, ["a", "b"]));
  const row = (id: number) => ({ id, logprob: -1, top: [] });
  log.append({ ...released(2, ["c", "d"]), logprobs: [row(102), row(103)] });
  expect(log.logprobs(0, 4).map(({ id }) => id)).toEqual([102, 103]);
  expect(log.logprobs(3, 4).map(({ id }) => id)).toEqual([103]);
  expect(log.logprobs(0, 2)).toEqual([]);
});

// The buffer grows past its first size, and a byte order mark is text like any other.
test("a long answer with a byte order mark comes back whole", () => {
  const log = new ResponseLog();
  log.append(released(0, ["\ufeffa"]));
  for (let seq = 2; seq < 500; seq++) log.append(released(log.seq, ["\u{1f30a} wave"]));
  expect(log.text(0, log.seq)).toBe(`\ufeffa${"\u{1f30a} wave".repeat(498)}`);
});
