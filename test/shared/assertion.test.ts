import { expect, test } from "vitest";
import { assertionIssuer, parseAssertion } from "../../shared/assertion.js";
import { MillraceError } from "../../shared/errors.js";
import { limits } from "../../shared/limits.js";

const nowS = 1_800_000_000;
const good = {
  iss: assertionIssuer,
  aud: "origin-1",
  sub: "user-7",
  tenant: "acme",
  class: "chat",
  limits: { streamsMax: 4, tokensMax: 1_000 },
  iat: nowS,
  exp: nowS + limits.assertionLifeS,
  jti: "one",
};

const parse = (change: object, at = nowS) => parseAssertion({ ...good, ...change }, "origin-1", at);

test("a good assertion is read, and what it does not know is left out", () => {
  expect(parse({ admin: true, limits: { ...good.limits, admin: true } })).toEqual(good);
});

test.each([
  ["iss", { iss: "somebody" }, 'iss is "somebody", not "millrace-edge"'],
  ["aud", { aud: "origin-2" }, 'aud is "origin-2", but this origin is "origin-1"'],
  ["aud", { aud: ["origin-1"] }, "aud is"],
  ["sub", { sub: undefined }, "sub is missing"],
  ["sub", { sub: "" }, 'sub is ""'],
  ["sub", { sub: "x".repeat(257) }, "sub is"],
  ["tenant", { tenant: 7 }, "tenant is 7"],
  ["tenant", { tenant: "" }, 'tenant is ""'],
  ["jti", { jti: null }, "jti is null"],
  ["class", { class: "fast" }, 'class is "fast"'],
  ["class", { class: "constructor" }, "class is"],
  ["iat", { iat: "now" }, "iat or exp is not a time"],
  ["exp", { exp: Number.NaN }, "iat or exp is not a time"],
  ["exp", { exp: undefined }, "iat or exp is not a time"],
  ["exp", { iat: nowS - 30, exp: nowS - 21 }, "it expired 21 s ago"],
  ["iat", { iat: nowS + 60, exp: nowS + 65 }, "issued 60 s in the future"],
  ["life", { exp: nowS + limits.assertionLifeS + 1 }, `it lives ${limits.assertionLifeS + 1} s`],
  ["limits", { limits: undefined }, "limits lacks"],
  ["limits", { limits: { streamsMax: 0, tokensMax: 1 } }, "limits lacks"],
  ["limits", { limits: { streamsMax: 1, tokensMax: 1.5 } }, "limits lacks"],
])("a bad %s is refused and named", (_claim, change, sentence) => {
  expect(() => parse(change)).toThrow(sentence);
  expect(() => parse(change)).toThrow(MillraceError);
});

test("clocks may differ by the skew that is allowed, and by no more", () => {
  const { clockSkewS } = limits;
  expect(parse({}, good.exp + clockSkewS - 1).sub).toBe("user-7");
  expect(() => parse({}, good.exp + clockSkewS)).toThrow(/expired/);
  expect(parse({}, good.iat - clockSkewS).sub).toBe("user-7");
  expect(() => parse({}, good.iat - clockSkewS - 1)).toThrow(/in the future/);
});

test("a payload that is no object is refused", () => {
  for (const payload of [null, "text", 1, undefined])
    expect(() => parseAssertion(payload, "origin-1", nowS)).toThrow(/payload is not an object/);
});
