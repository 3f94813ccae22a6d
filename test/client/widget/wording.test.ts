import { expect, test } from "vitest";
import { brokenOff, leftOut, noConnection, queued, readout, sentence } from "../../../client/widget/wording.js";
import { type ErrorCode, errorTable, MillraceError } from "../../../shared/errors.js";

// Whatever code ends an answer or a connection, a person reads a whole sentence.
test.each(Object.keys(errorTable) as ErrorCode[])("%s has sentences", (code) => {
  const error = new MillraceError(code, "something was 7, not 5");
  for (const text of [sentence(error), brokenOff(code, true), brokenOff(code, false), noConnection(error)])
    expect(text).toMatch(/^[A-Z].*\.$/);
});

test("a sentence that is one stays as it is", () => {
  expect(sentence(new MillraceError("internal", "Why? Because!"))).toBe("Why? Because!");
});

test("counts read as a person would say them", () => {
  expect(queued(1)).toBe("You are next in the queue.");
  expect(queued(12)).toBe("You are number 12 in the queue.");
  expect(leftOut(1)).toContain("the oldest message was left out");
  expect(leftOut(6)).toContain("the 6 oldest messages were left out");
});

test("the read-out shows what is known, in units that fit", () => {
  const values = (measures: Parameters<typeof readout>[0]) => readout(measures).map(({ value }) => value);
  const unknown = { networkMs: undefined, tokensPerSecond: undefined, gapP50Ms: undefined, gapP99Ms: undefined };
  const nothing = { firstTokenMs: undefined, tokens: 0, ...unknown };
  expect(values(nothing)).toEqual(["–", "–", "–"]);
  expect(values({ firstTokenMs: 212.4, networkMs: 1, tokens: 9, tokensPerSecond: 8.25, gapP50Ms: 1, gapP99Ms: 1_400 })).toEqual([
    "212 ms",
    "8.3 tokens/s",
    "1.40 s",
  ]);
  expect(values({ ...nothing, tokensPerSecond: 38.2 })[1]).toBe("38 tokens/s");
});
