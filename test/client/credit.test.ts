import fc from "fast-check";
import { expect, test } from "vitest";
import { Credit } from "../../client/credit.js";

function credit(window: number | undefined, consumed?: number) {
  const granted: number[] = [];
  return { granted, credit: new Credit(window, (seqMax) => granted.push(seqMax), consumed) };
}

test("credit is told once half a window was consumed", () => {
  const { granted, credit: eight } = credit(8);
  expect(eight.renew()).toBe(8);
  for (let seq = 1; seq <= 12; seq++) eight.consumed(seq);
  expect(granted).toEqual([12, 16, 20]);
});

test("without a window there is nothing to tell", () => {
  const { granted, credit: all } = credit(undefined);
  all.consumed(1_000);
  expect([granted, all.renew()]).toEqual([[], undefined]);
});

// Held, it stands still; what was consumed meanwhile counts at once when it is let go.
test("a held window does not grow", () => {
  const { granted, credit: four } = credit(4);
  four.hold(true);
  four.consumed(3);
  expect([granted, four.renew()]).toEqual([[], 4]);
  four.hold(false);
  expect(granted).toEqual([7]);
});

// A new socket is told all that is known, less than half a window too.
test("joining renews it", () => {
  const { granted, credit: ten } = credit(10, 20);
  expect(ten.renew()).toBe(30);
  ten.consumed(22);
  expect([granted, ten.renew()]).toEqual([[], 32]);
});

test.each([0, -1, 1.5, Number.NaN])("a window of %s is refused", (window) => {
  expect(() => credit(window)).toThrow(expect.objectContaining({ code: "field_invalid" }));
});

// Whatever a reader does, credit only grows, is never over a window ahead of it, and never leaves a reader that has everything waiting.
test("credit follows the reader", () => {
  const step = fc.oneof(fc.nat(20), fc.constant("join" as const));
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 16 }), fc.array(step, { maxLength: 60 }), (window, steps) => {
      const { granted, credit: one } = credit(window);
      let told = window;
      let consumed = 0;
      for (const each of steps) {
        if (each === "join") told = Math.max(told, one.renew() ?? 0);
        else {
          consumed = Math.min(consumed + each, told);
          one.consumed(consumed);
          for (const seqMax of granted.splice(0)) {
            expect(seqMax).toBeGreaterThan(told);
            told = seqMax;
          }
        }
        expect(told).toBeLessThanOrEqual(consumed + window);
        if (consumed > 0) expect(told).toBeGreaterThan(consumed);
      }
    }),
  );
});
