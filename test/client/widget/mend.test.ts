import fc from "fast-check";
import { expect, test } from "vitest";
import { mendTail } from "../../../client/widget/mend.js";

// What a reader sees of each unfinished text: as it will most likely go on, without marks that mean nothing yet.
test.each([
  ["**bol", "**bol**"],
  ["**bold ", "**bold**"],
  ["**bold**", "**bold**"],
  ["some **", "some "],
  ["some *", "some "],
  ["an *emphasis*", "an *emphasis*"],
  ["`cod", "`cod`"],
  ["`a ** b`", "`a ** b`"],
  ["`code`", "`code`"],
  ["see [the docs](https://example.com", "see the docs"],
  ["array[0]", "array[0]"],
  ["Here:\n-", "Here:"],
  ["Here:\n- one\n-", "Here:\n- one"],
  ["Steps\n1", "Steps"],
  ["Steps\n1. a\n2.", "Steps\n1. a"],
  ["A title\n==", "A title"],
  ["#", ""],
  ["``", ""],
  ["| a | b |", ""],
  ["| a | b |\n|---|---|\n| 1 |", "| a | b |\n|---|---|\n| 1 |"],
  ["```js\nlet **a", "```js\nlet **a"],
  ["```\n- x\n-", "```\n- x\n-"],
  ["5 * 3 = 15", "5 * 3 = 15"],
])("%j reads as %j", (source, mended) => {
  expect(mendTail(source)).toBe(mended);
});

// It may drop marks at the end and add closing ones, but never touches a word.
test("no word is ever lost", () => {
  const part = fc.constantFrom("word", "x", " ", "\n", "**", "*", "`", "- ", "1. ", "# ", "> ");
  fc.assert(
    fc.property(fc.array(part, { maxLength: 20 }), (parts) => {
      const words = (text: string): string => text.replace(/[^a-z]/g, "");
      const source = parts.join("");
      expect(words(mendTail(source))).toBe(words(source));
    }),
  );
});
