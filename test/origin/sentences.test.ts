import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Sentences } from "../../origin/sentences.js";

/** The text cut at the ends that are told, where it comes in these pieces. */
function sentences(pieces: readonly string[]): string[] {
  const splitter = new Sentences();
  const found: string[] = [""];
  for (const piece of pieces) {
    if (splitter.endsBefore(piece)) found.push("");
    found[found.length - 1] += piece;
  }
  return found;
}

/** As a tokenizer would: words with the space before them, and marks by themselves. */
const words = (text: string): string[] => text.match(/\s*(?:[\p{L}\p{N}]+|[^\s\p{L}\p{N}]|\s+$)/gu) ?? [];

// Each case is written with | where a sentence has ended: at a point that ends one, and at no other.
describe("sentences end where a reader would pause", () => {
  test.each([
    ["plain", "The wheel turns.| The stones grind.| Bread comes of it."],
    ["questions and exclamations", "Does it turn?| It does!| Good."],
    ["several marks", "Really?!| Yes..."],
    ["decimals", "It takes 3.5 l at 20.25 degrees.| Then 1.000 more."],
    ["titles", "Dr. Miller met Mrs. Stone.| They talked."],
    ["abbreviations", "Use grain, e.g. rye, i.e. not rice, cf. p. 9, etc. and so on.| Done."],
    ["initials", "J. S. Bach and Harry S. Truman came.| They left."],
    ["times", "At 5 p.m. it stops.| At 6 p.m.| Then it rains."],
    ["countries", "The U.S. mill is old.| So is the U.K. one."],
    ["ellipses", "It turned... and turned... | Then it stopped."],
    ["quotes", '"It turns." | She left.| “Why?” | He knew.'],
    ["a quote that goes on", '"It turns," she said.| He nodded.'],
    ["lists", "Steps:\n1. Fill it.| \n2. Start it.| \n3. Wait."],
    ["headings", "# The mill\n\n|It is old.\n\n|And large."],
    ["CJK", "水車が回る。|石が動く。|「本当？」|はい。"],
    ["addresses", "See example.com or file.txt or 10.0.0.1 for more.| Then go on."],
    ["versions", "Node.js 20.1 and v1.2.3 work.| Older ones do not."],
    ["code", "Call `a.b. c()` now.| Then:\n```\nx = 1. Y = 2.\n\nz!\n```\nDone."],
    ["German", "Das kostet z.B. 3 Euro bzw. 4 Mark.| Nr. 5 ist da."],
  ])("%s", (_, marked) => {
    const expected = marked.split("|");
    const text = expected.join("");
    const found = sentences(words(text));
    expect(found.map((each) => each.trim()).filter(Boolean)).toEqual(expected.map((each) => each.trim()).filter(Boolean));
  });
});

// However it is cut into pieces, nothing is lost, and a sentence never begins with white space alone.
test("any text in any pieces comes back whole", () => {
  fc.assert(
    fc.property(fc.array(fc.string({ unit: "grapheme", maxLength: 8 })), (pieces) => {
      const found = sentences(pieces);
      expect(found.join("")).toBe(pieces.join(""));
      for (const each of found.slice(1)) expect(each.trim()).not.toBe("");
    }),
  );
});

// Plain words go a shorter way than those with letters beyond ASCII; both are words.
test("sentences of plain words end where those of others do", () => {
  const words = ["mill", "race", "W", "Water", " mill", " race", " 7", " Water"];
  const accented: Readonly<Record<string, string>> = { i: "ï", a: "ä", W: "Ŵ", "7": "٧" };
  const marks = [".", "!", "?", "\n", " ", "\n\n", "...", "`", "```", '"', ")", " (", ",", " \n", "。", "-"];
  fc.assert(
    fc.property(fc.array(fc.constantFrom(...words, ...words, ...marks), { maxLength: 30 }), (pieces) => {
      const others = pieces.map((piece) => piece.replace(/[iaW7]/gu, (letter) => accented[letter] as string));
      const lengths = (found: string[]): number[] => found.map((each) => each.length);
      expect(lengths(sentences(pieces))).toEqual(lengths(sentences(others)));
    }),
    { numRuns: 2_000 },
  );
});
