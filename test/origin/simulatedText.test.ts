/** Token bytes become text as the engine's releaser has it. That the two agree on a real vocabulary stands in native.test.ts. */
import * as fc from "fast-check";
import { expect, test } from "vitest";
import { type Release, TextReleaser } from "../../origin/simulatedText.js";

const bytes = (...values: number[]): Uint8Array => Uint8Array.from(values);
const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** What is released of tokens 0, 1, 2 ... with these bytes, call by call, the flush last. */
function releases(tokens: readonly Uint8Array[], stops: readonly string[] = []): Release[] {
  const releaser = new TextReleaser(stops);
  const all: Release[] = [];
  for (const [id, token] of tokens.entries()) {
    const release = releaser.push(id, token);
    all.push(release);
    if (release.stopped) return all;
  }
  return [...all, releaser.flush()];
}

/** The text of each token. */
function texts(all: readonly Release[]): string[] {
  return all.flatMap(({ text, ends }) => {
    const whole = Buffer.from(text);
    return ends.map((end, index) => whole.subarray(ends[index - 1] ?? 0, end).toString());
  });
}

// Whole code points, and each token with the code point that its last byte belongs to.
test.each<[string, Uint8Array[], string[]]>([
  ["plain", [bytes(0x61), bytes(0x62, 0x63)], ["a", "bc"]],
  ["a split code point", [bytes(0x61, 0xc3), bytes(0xa9, 0x62)], ["a\u00e9", "b"]],
  ["one of four bytes in three tokens", [bytes(0xf0), bytes(0x9f, 0x8c), bytes(0x8a)], ["\u{1f30a}", "", ""]],
  ["one that is never ended", [bytes(0x61), bytes(0xe6, 0xb0)], ["a", "\ufffd"]],
  ["one that is broken off", [bytes(0xc3), bytes(0x61)], ["\ufffd", "a"]],
  ["a byte that fits nowhere", [bytes(0xa9), bytes(0x61)], ["\ufffd", "a"]],
  ["an overlong form", [bytes(0xe0, 0x80), bytes(0x80)], ["\ufffd\ufffd", "\ufffd"]],
  ["half a surrogate", [bytes(0xed, 0xa0), bytes(0x80)], ["\ufffd\ufffd", "\ufffd"]],
  ["beyond the last code point", [bytes(0xf4, 0x90), bytes(0x80, 0x80)], ["\ufffd\ufffd", "\ufffd\ufffd"]],
  ["a byte order mark", [bytes(0xef, 0xbb, 0xbf), bytes(0x61)], ["\ufeff", "a"]],
  ["a token without bytes", [bytes(), bytes(0xc3), bytes(), bytes(0xa9)], ["", "\u00e9", "", ""]],
])("bytes become text: %s", (_, tokens, expected) => {
  const all = releases(tokens);
  expect(texts(all)).toEqual(expected);
  expect(all.flatMap(({ ids }) => ids)).toEqual(tokens.map((_, id) => id));
});

test("a token is released once its text is certain, and not before", () => {
  const releaser = new TextReleaser(["STOP"]);
  const push = (id: number, text: string) => releaser.push(id, Buffer.from(text, "latin1"));
  expect(push(1, "a ")).toEqual({ text: "a ", ids: [1], ends: [2], stopped: false });
  expect(push(2, "ST")).toMatchObject({ text: "", ids: [] });
  expect(push(3, "\xf0\x9f")).toEqual({ text: "", ids: [], ends: [], stopped: false });
  expect(push(4, "\x8c\x8a S")).toEqual({ text: "ST\u{1f30a}", ids: [2, 3], ends: [2, 6], stopped: false });
  expect(releaser.isEmpty).toBe(false);
  // Whoever is beyond the stop string's beginning has no text, the bytes after it included.
  expect(push(5, "TOP\xe6")).toEqual({ text: " ", ids: [4, 5], ends: [1, 1], stopped: true });
  expect(releaser.flush()).toMatchObject({ text: "", ids: [] });
});

test("stop strings are not sought where an answer may not stop yet", () => {
  const releaser = new TextReleaser(["ab"]);
  expect(releaser.push(1, Buffer.from("xab"), false)).toEqual({ text: "xab", ids: [1], ends: [3], stopped: false });
  expect(releaser.push(2, Buffer.from("a"), false)).toMatchObject({ text: "a", ids: [2] });
  expect(releaser.push(3, Buffer.from("b"))).toMatchObject({ text: "b", ids: [3], stopped: false });
  expect(releaser.push(4, Buffer.from("ab"))).toEqual({ text: "", ids: [4], ends: [0], stopped: true });
});

test("of several stop strings the one that is completed first decides, however the text falls into tokens", () => {
  for (const tokens of [["xabc"], ["x", "a", "b", "c"], ["xa", "bc"], ["xab", "c"]]) {
    const all = releases(
      tokens.map((text) => Buffer.from(text)),
      ["abc", "b"],
    );
    expect(all.map(({ text }) => text).join("")).toBe("xa");
  }
  expect(releases([Buffer.from("xabc")], ["c", "abc"])[0]).toMatchObject({ text: "x", stopped: true });
});

const piece = fc.oneof(
  fc.constantFrom("a", "b", "\n", "\u00e9", "\u20ac", "\u{1f600}").map((text) => [...Buffer.from(text)]),
  fc.constantFrom([0xe2], [0xf0, 0x9f], [0xff], [0x80], [0xed, 0xa0, 0x80], [0xc0, 0xaf]),
);
/** Random bytes, cut into tokens at random. */
const anyTokens = fc.tuple(fc.array(piece, { maxLength: 20 }), fc.infiniteStream(fc.integer({ min: 0, max: 5 }))).map(([pieces, cuts]) => {
  const whole = pieces.flat();
  const tokens: Uint8Array[] = [];
  for (let at = 0; at < whole.length && tokens.length < 100; ) {
    const { value: length } = cuts.next();
    tokens.push(Uint8Array.from(whole.slice(at, at + length)));
    at += length;
  }
  return tokens;
});
const anyStops = fc.array(fc.constantFrom("a", "ab", "ba", "aab", "\n", "b\n", "\u00e9a", "\u20ac", "a\u{1f600}"), {
  maxLength: 3,
});

// Whatever bytes, tokens and stop strings: what comes out is what one would decode and cut of the whole.
test("random tokens come out as a plain decoder and cutter would give them", () => {
  fc.assert(
    fc.property(anyTokens, anyStops, (tokens, stops) => {
      const all = releases(tokens, stops);
      const text = utf8.decode(Buffer.concat(tokens));
      const found = stops.map((stop) => ({ at: text.indexOf(stop), end: text.indexOf(stop) + stop.length })).filter(({ at }) => at >= 0);
      const first = found.sort((a, b) => a.end - b.end || a.at - b.at)[0];
      expect(all.map((release) => release.text).join("")).toBe(text.slice(0, first?.at));
      expect(all.at(-1)?.stopped).toBe(first !== undefined);
      const ids = all.flatMap((release) => release.ids);
      expect(ids).toEqual(ids.map((_, index) => index));
      for (const release of all) expect(release.ends.at(-1) ?? 0).toBe(Buffer.byteLength(release.text));
      if (!first) expect(texts(all)).toEqual(plainTexts(tokens, text));
    }),
  );
});

/** Each token's text ends behind as many code points of the whole as its bytes and those before it have, an unfinished one counted as one. */
function plainTexts(tokens: readonly Uint8Array[], whole: string): string[] {
  const points = [...whole];
  let from = 0;
  return tokens.map((_, index) => {
    const to = [...utf8.decode(Buffer.concat(tokens.slice(0, index + 1)))].length;
    const text = points.slice(from, to).join("");
    from = to;
    return text;
  });
}
