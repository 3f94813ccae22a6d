import * as fc from "fast-check";
import { expect, test } from "vitest";
import { ResponseLog } from "../../origin/log.js";
import { Digest } from "../../shared/digest.js";

// What was said after any token can be said again: for all ways to release tokens, some of them without text of their own.
test("the log gives back the text after any token, its length and its digest", () => {
  const releases = fc.array(fc.record({ skip: fc.integer({ min: 0, max: 3 }), text: fc.string({ unit: "grapheme", maxLength: 12 }) }));
  fc.assert(
    fc.property(releases, (pieces) => {
      const log = new ResponseLog();
      const said: { seq: number; text: string }[] = [];
      for (const { skip, text } of pieces) {
        const seq = log.seq + 1 + skip;
        log.append(seq, text);
        said.push({ seq, text });
        expect(log.seq).toBe(seq);
      }
      const bytes = new TextEncoder().encode(said.map(({ text }) => text).join(""));
      const digest = new Digest();
      digest.update(bytes);
      expect([log.textBytes, log.digest]).toEqual([bytes.length, digest.value]);
      for (let seq = 0; seq <= log.seq; seq++)
        expect(log.after(seq)).toBe(
          said
            .filter((piece) => piece.seq > seq)
            .map(({ text }) => text)
            .join(""),
        );
    }),
  );
});

test("a token is appended once, and in order", () => {
  const log = new ResponseLog();
  log.append(2, "a");
  expect(() => log.append(2, "b")).toThrow("token 2 was appended after token 2");
  expect(() => log.append(1, "b")).toThrow("token 1 was appended after token 2");
});

// The buffer grows past its first size, and a byte order mark is text like any other.
test("a long answer with a byte order mark comes back whole", () => {
  const log = new ResponseLog();
  log.append(1, "\ufeffa");
  for (let seq = 2; seq < 500; seq++) log.append(seq, "\u{1f30a} wave");
  expect(log.after(0)).toBe(`\ufeffa${"\u{1f30a} wave".repeat(498)}`);
});
