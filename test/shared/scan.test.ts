import fc from "fast-check";
import { Packr } from "msgpackr";
import { expect, test } from "vitest";
import { MillraceError } from "../../shared/errors.js";
import { limits } from "../../shared/limits.js";
import { scan } from "../../shared/scan.js";

const packr = new Packr({ useRecords: false });

// The scanner must let pass exactly what the bounds allow: every width of every type, up to the depth and the items allowed.
test("passes every type that JSON has, and bytes", () => {
  const value = fc.letrec((tie) => ({
    leaf: fc.oneof(
      fc.constant(null),
      fc.boolean(),
      fc.integer(),
      fc.maxSafeInteger(),
      fc.double(),
      fc.string({ unit: "binary", maxLength: 300 }),
      fc.uint8Array({ maxLength: 300 }),
    ),
    value: fc.oneof(
      { depthSize: "small", maxDepth: limits.frameDepthMax },
      tie("leaf"),
      fc.array(tie("value"), { maxLength: 20 }),
      fc.dictionary(fc.string(), tie("value"), { maxKeys: 20 }),
    ),
  })).value;
  fc.assert(
    fc.property(value, (drawn) => {
      fc.pre(depthOf(drawn) <= limits.frameDepthMax);
      scan(packr.pack(drawn));
    }),
  );
});

function depthOf(value: unknown): number {
  if (typeof value !== "object" || value === null || value instanceof Uint8Array) return 0;
  return 1 + Math.max(0, ...Object.values(value).map(depthOf));
}

test("passes long texts, byte strings and arrays, whose headers are of two and four bytes", () => {
  for (const length of [31, 32, 255, 256, 65_535, 65_536]) {
    scan(packr.pack("x".repeat(length)));
    scan(packr.pack(new Uint8Array(length)));
  }
  scan(packr.pack(new Array(limits.frameItemsMax).fill(0)));
});

test("the depth allowed passes and one more does not", () => {
  const nested = (depth: number): Uint8Array => Uint8Array.from([...new Array(depth).fill(0x91), 0]);
  scan(nested(limits.frameDepthMax));
  expect(() => scan(nested(limits.frameDepthMax + 1))).toThrow(MillraceError);
});

test("says where a value was cut off", () => {
  expect(() => scan(Uint8Array.of(0x92, 0x01, 0xa5, 0x61))).toThrow("it ends at byte 4, inside a value that ends at 8");
});

test("an empty frame is malformed", () => {
  expect(() => scan(new Uint8Array())).toThrow(MillraceError);
});
