import fc from "fast-check";
import { expect, test } from "vitest";
import { Digest } from "../../shared/digest.js";

function digestOf(...parts: Uint8Array[]): number {
  const digest = new Digest();
  for (const part of parts) digest.update(part);
  return digest.value;
}

// RFC 3720, appendix B.4, and the check value that CRC catalogues give.
test("agrees with the published values of CRC-32C", () => {
  expect(digestOf(new TextEncoder().encode("123456789"))).toBe(0xe306_9283);
  expect(digestOf(new Uint8Array(32))).toBe(0x8a91_36aa);
  expect(digestOf(new Uint8Array(32).fill(0xff))).toBe(0x62a8_ab43);
  expect(digestOf(Uint8Array.from({ length: 32 }, (_, index) => index))).toBe(0x46dd_794e);
  expect(digestOf(Uint8Array.from({ length: 32 }, (_, index) => 31 - index))).toBe(0x113f_db5c);
  expect(digestOf()).toBe(0);
});

test("does not depend on how the bytes were split", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 500 }), fc.array(fc.nat(500), { maxLength: 6 }), (bytes, cuts) => {
      const ends = [...cuts.map((cut) => Math.min(cut, bytes.length)).sort((a, b) => a - b), bytes.length];
      const parts = ends.map((end, index) => bytes.subarray(ends[index - 1] ?? 0, end));
      expect(digestOf(...parts)).toBe(digestOf(bytes));
    }),
  );
});

test("notices any one bit that changed", () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 1, maxLength: 200 }), fc.nat(), fc.nat(7), (bytes, where, bit) => {
      const changed = bytes.slice();
      const at = where % bytes.length;
      changed[at] = (changed[at] as number) ^ (1 << bit);
      expect(digestOf(changed)).not.toBe(digestOf(bytes));
    }),
  );
});

test("counts its bytes, and its value can be read midway", () => {
  const digest = new Digest();
  digest.update(new TextEncoder().encode("12345"));
  expect(digest.value).toBe(digestOf(new TextEncoder().encode("12345")));
  digest.update(new TextEncoder().encode("6789"));
  expect(digest.value).toBe(0xe306_9283);
  expect(digest.bytes).toBe(9);
});
