/** Who is promised what: classes and tenants from a file, and a START's own wishes. */
import { describe, expect, test } from "vitest";
import { readTerms, ServiceTerms } from "../../origin/terms.js";
import { serviceClasses } from "../../shared/classes.js";
import { MillraceError } from "../../shared/errors.js";

describe("a file", () => {
  test("changes what it names and leaves the rest", () => {
    const terms = readTerms('{"classes": {"voice": {"ttftMs": 300}, "chat": {"waitMs": 0}}, "tenants": {"acme": {"weight": 4}}}');
    expect(terms.classes).toEqual({
      voice: { ...serviceClasses.voice, ttftMs: 300 },
      chat: { ...serviceClasses.chat, waitMs: 0 },
      batch: serviceClasses.batch,
    });
    expect(terms.of("chat", "acme", {})).toEqual({ ...serviceClasses.chat, waitMs: 0, tenantWeight: 4 });
    expect(terms.of("batch", "other", {})).toEqual({ ...serviceClasses.batch, tenantWeight: 1 });
    expect(readTerms("{}")).toEqual(new ServiceTerms());
  });

  test.each([
    ["", /^it is not JSON: /],
    ["[]", /^the file is \[\], not an object/],
    ['{"class": {}}', /^the file has "class"; it may have classes, tenants/],
    ['{"classes": {"fast": {}}}', /^classes has "fast"; it may have voice, chat, batch/],
    ['{"classes": {"chat": 5}}', /^classes.chat is 5, not an object/],
    ['{"classes": {"chat": {"ttft": 5}}}', /^classes.chat has "ttft"; it may have ttftMs, itlMs, waitMs/],
    ['{"classes": {"chat": {"ttftMs": "fast"}}}', /^classes.chat.ttftMs is "fast", not a number from 1 to 600000/],
    ['{"classes": {"chat": {"itlMs": 0}}}', /^classes.chat.itlMs is 0, not a number from 1 to 60000/],
    ['{"classes": {"chat": {"waitMs": -1}}}', /^classes.chat.waitMs is -1, not a number from 0 to 3600000/],
    [
      '{"classes": {"voice": {"itlMs": 200}}}',
      /^classes.chat.itlMs is 150, tighter than the 200 of voice: the order is voice, chat, batch/,
    ],
    ['{"tenants": {"acme": 4}}', /^tenants.acme is 4, not an object/],
    ['{"tenants": {"acme": {"weight": 0}}}', /^tenants.acme.weight is 0, not a number from 0.001 to 1000/],
    ['{"tenants": {"acme": {"wait": 1}}}', /^tenants.acme has "wait"; it may have weight/],
    [JSON.stringify({ tenants: Object.fromEntries(Array.from({ length: 10_001 }, (_, n) => [n, {}])) }), /^tenants has 10001 entries/],
  ])("%s is refused with the part that is wrong", (text, sentence) => {
    expect(() => readTerms(text)).toThrow(sentence);
  });
});

describe("a START's wish", () => {
  const terms = new ServiceTerms(serviceClasses, new Map([["acme", 4]]));

  test("takes the place of what the class has, looser or tighter", () => {
    expect(terms.of("chat", "any", { ttftMs: 10_000, itlMs: 500, waitMs: 0 })).toEqual({
      ttftMs: 10_000,
      itlMs: 500,
      waitMs: 0,
      tenantWeight: 1,
    });
    expect(terms.of("chat", "any", { waitMs: 600_000 })).toEqual({ ...serviceClasses.chat, waitMs: 600_000, tenantWeight: 1 });
  });

  // Otherwise every chat would call itself voice.
  test("that is tighter takes as much more of the tenant's share", () => {
    expect(terms.of("chat", "acme", { ttftMs: 500 }).tenantWeight).toBe(1);
    expect(terms.of("chat", "acme", { itlMs: 75, ttftMs: 60_000 }).tenantWeight).toBe(2);
    expect(terms.of("batch", "any", { itlMs: 60, ttftMs: 500 }).tenantWeight).toBeCloseTo(1 / 120);
  });

  test.each([
    [{ ttftMs: 499 }, "ttftMs is 499, but this origin's classes span 500 to 60000"],
    [{ ttftMs: 60_001 }, "ttftMs is 60001, but this origin's classes span 500 to 60000"],
    [{ itlMs: 59 }, "itlMs is 59, but this origin's classes span 60 to 2000"],
    [{ waitMs: 600_001 }, "waitMs is 600001, but this origin's classes span 0 to 600000"],
  ])("of %o is refused", (wish, sentence) => {
    expect(() => terms.of("voice", "any", wish)).toThrow(new MillraceError("field_invalid", sentence));
  });
});
