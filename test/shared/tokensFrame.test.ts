import fc from "fast-check";
import { expect, test } from "vitest";
import { decodeServerMessage, encode } from "../../shared/codec.js";
import { Op } from "../../shared/protocol.js";
import { encodeTokens } from "../../shared/tokensFrame.js";

const uint32 = fc.oneof(
  fc.integer({ min: 0, max: 300 }),
  fc.integer({ min: 0xff00, max: 0x1_00ff }),
  fc.integer({ min: 0, max: 0xffff_ffff }),
);
/** With lengths on both sides of each form that a text's head has, and of the longest that is written here. */
const texts = fc.oneof(
  fc.string({ maxLength: 40 }),
  fc.string({ unit: "grapheme", maxLength: 300 }),
  fc
    .tuple(fc.constantFrom("a", "é", "水", "🦀"), fc.constantFrom(31, 32, 33, 255, 256, 257, 1_023, 1_024, 1_025))
    .map(([unit, count]) => unit.repeat(count)),
);

test("reads as it was written, and weighs no more than any other encoding of it", () => {
  fc.assert(
    fc.property(uint32, uint32, texts, fc.integer({ min: 0, max: 255 }), (stream, before, text, flags) => {
      const seq = Math.max(1, before);
      const bytes = Uint8Array.from(encodeTokens(stream, seq, text, flags));
      expect(decodeServerMessage(bytes)).toEqual([Op.TOKENS, stream, seq, text, flags]);
      expect(bytes.length).toBeLessThanOrEqual(encode([Op.TOKENS, stream, seq, text, flags]).length);
    }),
    { numRuns: 1_000 },
  );
});

// UTF-8 has no form for half a code point.
test("half a surrogate pair becomes a replacement character", () => {
  const read = (text: string): unknown => decodeServerMessage(Uint8Array.from(encodeTokens(1, 1, text, 0)))?.[3];
  expect([read("\ud800"), read("a\udc00b")]).toEqual(["\ufffd", "a\ufffdb"]);
});

// Frames of one length share their memory: what is sent is taken within the call.
test("leaves nothing of a message in the next", () => {
  const first = Uint8Array.from(encodeTokens(70_000, 70_000, "水".repeat(200), 7));
  encodeTokens(1, 1, "a", 0);
  expect(Uint8Array.from(encodeTokens(70_000, 70_000, "水".repeat(200), 7))).toEqual(first);
  expect(decodeServerMessage(Uint8Array.from(encodeTokens(1, 2, "b", 1)))).toEqual([Op.TOKENS, 1, 2, "b", 1]);
});
