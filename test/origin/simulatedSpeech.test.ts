/** What the simulated inference says depends on all before it, in any vocabulary, and has its code points split. */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { TokenType, type Vocabulary, VocabularyError } from "../../origin/chat/vocabulary.js";
import { emptyHash, fold, Speaker, Speech, scramble, simulatedAnswer } from "../../origin/simulatedSpeech.js";
import { simulatedVocabulary, tokenBytes } from "../../origin/simulatedVocabulary.js";

const vocabulary = simulatedVocabulary();

// Published values: FNV-1a of these texts, where ids are bytes, and MurmurHash3's finalizer.
test("the hash is FNV-1a, and the draw MurmurHash3's finalizer", () => {
  const hash = (text: string): number => Buffer.from(text).reduce(fold, emptyHash) >>> 0;
  expect(["", "a", "foobar"].map(hash)).toEqual([0x811c9dc5, 0xe40c292c, 0xbf9cf968]);
  expect([0, 1, 0xdeadbeef].map(scramble)).toEqual([0, 0x514e28b7, 0x0de5c6a9]);
});

// Values computed apart from this code: a change of the hash, the vocabulary or the drawing changes what every test of the relay expects.
test("the answer to a prompt is what it always was", () => {
  const { ids, text } = simulatedAnswer(vocabulary, [1, 2, 3], 12);
  expect(ids).toEqual([281, 311, 295, 272, 270, 295, 263, 286, 259, 292, 315, 182]);
  expect(text).toBe(" flour \u0637\u0627\u062d\u0648\u0646\u0629 runs stones new runs wheel light a closes \u00f4");
  expect(simulatedAnswer(vocabulary, [], 40)).toEqual({
    ids: [
      289, 311, 310, 314, 318, 295, 271, 317, 185, 266, 292, 309, 302, 316, 187, 307, 307, 314, 319, 295, 316, 192, 275, 316, 180, 273, 303,
      317, 140, 282, 294, 312, 317, 190, 265, 279, 317, 153, 264, 289,
    ],
    text:
      " rope \u0637\u0627\u062d\u0648\u0646\u0629 \u043c\u0435\u043b\u044c\u043d\u0438\u0446\u0430 \u{1f33e} runs stone\u{1f337} quickly closes \u6c34\u8eca his" +
      " \u6c39 caf\u00e9 caf\u00e9 \u{1f35e} runs \u6c3e and \u6c32 river their\u{1f30a} baker sees \u{1f30a}\u{1f33c} slowly again\u{1f317} turns rope",
  });
});

/** How many of two answers' tokens are the same ones at the same places. */
const alike = (a: readonly number[], b: readonly number[]): number => a.filter((id, index) => id === b[index]).length;

describe("everything that follows is another where what comes before is", () => {
  const length = 200;
  const prompt = [17, 4, 250, 31, 31, 9];
  const { ids } = simulatedAnswer(vocabulary, prompt, length);
  const chance = length / 10;

  test.each<[string, number[]]>([
    ["in another order", [17, 250, 4, 31, 31, 9]],
    ["with the last two turned", [17, 4, 250, 31, 9, 31]],
    ["one less at the beginning", [4, 250, 31, 31, 9]],
    ["one less at the end", [17, 4, 250, 31, 31]],
    ["one more", [17, 4, 250, 31, 31, 31, 9]],
    ["one other", [17, 4, 251, 31, 31, 9]],
    ["a far one", [17 + 2 ** 16, 4, 250, 31, 31, 9]],
  ])("the prompt, %s", (_, other) => {
    expect(alike(ids, simulatedAnswer(vocabulary, other, length).ids)).toBeLessThan(chance);
  });

  // What a client brings may be wrong anywhere: lost, doubled, or another.
  test("the answer, with one token lost, doubled or another", () => {
    const goOn = (brought: readonly number[]): number[] => {
      const speaker = new Speaker(Speech.of(vocabulary), prompt);
      for (const id of brought) speaker.take(id);
      return Array.from({ length }, () => {
        const id = speaker.next();
        speaker.take(id);
        return id;
      });
    };
    const rest = goOn(ids);
    expect(ids.slice(0, 100).concat(goOn(ids.slice(0, 100)).slice(0, 100))).toEqual(ids);
    fc.assert(
      fc.property(fc.integer({ min: 0, max: length - 1 }), fc.integer({ min: 2, max: 300 }), (at, other) => {
        const same = ids[at] === other;
        expect(alike(rest, goOn(ids.toSpliced(at, 1)))).toBeLessThan(chance);
        expect(alike(rest, goOn(ids.toSpliced(at, 0, ids[at] as number)))).toBeLessThan(chance);
        if (!same) expect(alike(rest, goOn(ids.with(at, other)))).toBeLessThan(chance);
      }),
    );
  });
});

test("many code points are split across tokens, and text is what its bytes are", () => {
  const speaker = new Speaker(Speech.of(vocabulary), [1]);
  const { ids, text } = simulatedAnswer(vocabulary, [1], 2_000);
  const waits = ids.filter((id) => speaker.take(id).ids.length === 0).length;
  expect(waits).toBeGreaterThan(300);
  const bytes = Buffer.concat(ids.map((id) => Speech.of(vocabulary).bytes[id] as Uint8Array));
  expect(text).toBe(new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes));
});

/** A vocabulary of pieces, whose bytes are tokens of their own. */
function pieces(changes: Partial<Vocabulary> = {}): Vocabulary {
  const words = ["<s>", "<tool>", "\u2581the", "\u2581mill", "race", "\u2581\u6c34", "a"];
  const tokens = [...words, ...Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`)];
  const types = tokens.map((_, id) =>
    id === 0 ? TokenType.control : id === 1 ? TokenType.userDefined : id < words.length ? TokenType.normal : TokenType.byte,
  );
  return { ...vocabulary, kind: "llama", tokens, types, ...changes };
}

test("tokens stand for the bytes that the engine has for them", () => {
  const written = (all: readonly Uint8Array[]): string[] => all.map((bytes) => Buffer.from(bytes).toString("latin1"));
  expect(written(tokenBytes(pieces()).slice(0, 8))).toEqual(["", "<tool>", " the", " mill", "race", " \xe6\xb0\xb4", "a", "\x00"]);
  expect(written(tokenBytes(pieces()).slice(-1))).toEqual(["\xff"]);
  const tokens = ["<|end|>", "\u0120the", "\u00e6\u00b0", "\u6c34", "\u0120\u2581", "\u0120"];
  const types = [TokenType.control, TokenType.normal, TokenType.normal, TokenType.normal, TokenType.userDefined, TokenType.unused];
  expect(written(tokenBytes({ kind: "gpt2", tokens, types }))).toEqual([
    "",
    " the",
    "\xe6\xb0",
    "\xe6\xb0\xb4",
    "\xc4\xa0\xe2\x96\x81",
    "",
  ]);
});

test("a vocabulary of pieces splits code points by its bytes, and says only what a model would", () => {
  const { ids, text } = simulatedAnswer(pieces(), [3], 1_000);
  expect(text).toMatch(/ the/);
  const split = new Set([...text].filter((point) => point !== "\u6c34" && point > "\u007f" && point !== "\ufffd"));
  expect(split.size).toBeGreaterThan(20);
  expect(ids.filter((id) => id < 2)).toEqual([]);
});

test("where no token stands for text there is nothing to say", () => {
  const tokens = ["<s>", "<tool>"];
  const nothing = pieces({ tokens, types: [TokenType.control, TokenType.userDefined] });
  expect(() => Speech.of(nothing)).toThrow(VocabularyError);
  expect(() => Speech.of(nothing)).toThrow(/^a vocabulary of 2 tokens has none that stands for text/);
});
