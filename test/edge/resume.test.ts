/** Resume tokens: what they say, whom they let in, and that nobody else learns of them. */
import { decodeJwt, decodeProtectedHeader, type JWTPayload, SignJWT } from "jose";
import { expect, test, vi } from "vitest";
import { edgeLimits } from "../../edge/limits.js";
import type { AssertionClaims } from "../../shared/assertion.js";
import { limits } from "../../shared/limits.js";
import {
  begun,
  bindings,
  edgeKey,
  errorOf,
  expectRefusal,
  type FakeFleet,
  fakeFleet,
  fakeOrigins,
  isolateTests,
  listen,
  makeKey,
  offer,
  offerResume,
  openStream,
  request,
  ticketFor,
  upgraded,
} from "./support.js";

isolateTests();

const shop = "https://shop.test";
const type = "millrace-resume+jwt";

test("a token says whose session it is, where it was and when it ends, and nothing else", async () => {
  const fleet = fakeFleet("a");
  const token = await begun(fleet, "a", shop);
  expect(decodeProtectedHeader(token)).toEqual({ alg: "EdDSA", typ: type });
  expect(decodeJwt(token)).toEqual({
    iss: "millrace-edge",
    sub: "ada",
    tenant: "analytical",
    class: "chat",
    limits: { streamsMax: 64, tokensMax: 16_384 },
    page: shop,
    origin: "a",
    epoch: "a-1",
    exp: fleet.origins.a.assertions[0]?.sessionExp,
  });
});

test("a token opens sockets of the same user with the same rights, as often as it is brought", async () => {
  const fleet = fakeFleet("a");
  const headers = offer(await ticketFor(undefined, { class: "batch", limits: { streamsMax: 2, tokensMax: 100 } }));
  await openStream(headers, fleet.bindings);
  const { assertions } = fleet.origins.a;
  for (let socket = 1; socket <= 2; socket++) await openStream(offerResume(assertions[0]?.resume ?? ""), fleet.bindings);
  const rights = ({ sub, tenant, class: className, limits, resume }: AssertionClaims) => ({ sub, tenant, className, limits, resume });
  expect(assertions.length).toBe(3);
  for (const later of assertions) expect(rights(later)).toEqual(rights(assertions[0] as AssertionClaims));
  expect(new Set(assertions.map(({ jti }) => jti)).size).toBe(3);
});

test("resuming does not lengthen a session: every socket's token ends 12 h after the ticket was issued", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const fleet = fakeFleet("a");
  let token = await begun(fleet, "a");
  const end = (decodeJwt(token).exp ?? 0) * 1_000;
  expect(Math.ceil((end - Date.now()) / 1_000)).toBe(43_200);
  while (Date.now() < end - 7_200_000) {
    vi.advanceTimersByTime(7_200_000);
    expect((await openStream(offerResume(token), fleet.bindings)).status).toBe(101);
    const { resume, sessionExp } = fleet.origins.a.assertions.at(-1) as AssertionClaims;
    expect([decodeJwt(resume ?? "").exp, sessionExp]).toEqual([end / 1_000, end / 1_000]);
    token = resume ?? "";
  }
  vi.setSystemTime(end);
  await expectRefusal(
    await openStream(offerResume(token), fleet.bindings),
    "resume_invalid",
    "the session is over: it began more than 12 h ago",
  );
});

const claims = {
  iss: "millrace-edge",
  sub: "mallory",
  tenant: "t",
  class: "chat",
  limits: { streamsMax: 1, tokensMax: 1 },
  page: null,
  origin: "origin-1",
  epoch: "epoch-1",
};

function sign(typ: string | undefined, given: JWTPayload = claims, key: CryptoKey = edgeKey.sign): Promise<string> {
  const exp = Math.floor(Date.now() / 1_000) + 60;
  return new SignJWT({ exp, ...given }).setProtectedHeader({ alg: "EdDSA", ...(typ ? { typ } : {}) }).sign(key);
}

function changed(token: string): string {
  const [header, , signature] = token.split(".");
  const payload = btoa(JSON.stringify({ ...decodeJwt(token), tenant: "another" })).replace(/=+$/, "");
  return [header, payload.replaceAll("+", "-").replaceAll("/", "_"), signature].join(".");
}

/** Without some of its claims. */
function but(...names: (keyof typeof claims)[]): JWTPayload {
  return Object.fromEntries(Object.entries(claims).filter(([name]) => !names.includes(name as keyof typeof claims)));
}

test("the token that the following ones are forged after opens a socket", async () => {
  fakeOrigins(upgraded);
  expect((await openStream(offerResume(await sign(type)))).status).toBe(101);
});

test.each([
  ["signed by another key", async () => sign(type, claims, (await makeKey()).sign)],
  ["that is a ticket", () => ticketFor()],
  ["that says all of a resume token, as a ticket", () => sign("millrace-ticket+jwt")],
  ["that says all of a resume token, as an assertion", () => sign("millrace-assertion+jwt")],
  ["of no type", () => sign(undefined)],
  ["of another issuer", () => sign(type, { ...claims, iss: "somebody" })],
  ["whose payload was changed", async () => changed(await sign(type))],
  ["that is expired", () => sign(type, { ...claims, exp: Math.floor(Date.now() / 1_000) })],
  ["that never expires", () => new SignJWT(claims).setProtectedHeader({ alg: "EdDSA", typ: type }).sign(edgeKey.sign)],
  ["of another version, without a user", () => sign(type, but("sub"))],
  ["of another version, without limits", () => sign(type, but("limits"))],
  ["of another version, without an origin", () => sign(type, but("origin"))],
  ["of another version, without an epoch", () => sign(type, but("epoch"))],
  ["that is garbage", async () => "abc"],
  ["of 3 kB", async () => sign(type, { ...claims, padding: "x".repeat(2_000) })],
])("a resume token %s is refused, and no origin hears of it", async (_, make) => {
  const requests = fakeOrigins(upgraded);
  await expectRefusal(await openStream(offerResume(await make())), "resume_invalid", "");
  expect(requests).toEqual([]);
});

test("a resume token is no ticket", async () => {
  const token = await begun(fakeFleet("a"), "a");
  await expectRefusal(await openStream(offer(token)), "ticket_invalid", "none of this edge's");
});

test.each([
  ["another page", shop, "https://evil.test"],
  ["an agent", shop, undefined],
  ["a page, when it was an agent's", undefined, shop],
])("a resume token brought by %s is refused", async (_, given, broughtBy) => {
  const fleet = fakeFleet("a");
  const token = await begun(fleet, "a", given);
  const response = await openStream({ ...offerResume(token), ...(broughtBy ? { origin: broughtBy } : {}) }, fleet.bindings);
  await expectRefusal(response, "page_origin_refused", "the resume token was issued to");
  expect(fleet.origins.a.assertions.length).toBe(1);
});

test("its own page brings it back, and the next token is bound to that page too", async () => {
  const fleet = fakeFleet("a");
  const token = await begun(fleet, "a", shop);
  expect((await openStream({ ...offerResume(token), origin: shop }, fleet.bindings)).status).toBe(101);
  expect(decodeJwt(fleet.origins.a.assertions[1]?.resume ?? "").page).toBe(shop);
});

test("asking for elsewhere opens nothing by itself", async () => {
  const requests = fakeOrigins(upgraded);
  await expectRefusal(await openStream({ "sec-websocket-protocol": "millrace.v1, elsewhere" }), "ticket_missing", "fetch a ticket");
  await expectRefusal(
    await openStream({ "sec-websocket-protocol": "millrace.v1, resume., elsewhere" }),
    "ticket_missing",
    "fetch a ticket",
  );
  expect(requests).toEqual([]);
});

test("a plain HTTP request with a good resume token is told to upgrade, with a bad one gets the status", async () => {
  const fleet = fakeFleet("a");
  const token = await begun(fleet, "a");
  expect(await errorOf(await request("/v1/stream", { headers: offerResume(token) }, fleet.bindings))).toMatchObject({ status: 426 });
  const bad = await errorOf(await request("/v1/stream", { headers: offerResume("a.b.c") }, fleet.bindings));
  expect(bad).toMatchObject({ status: 401, code: "resume_invalid" });
  expect(fleet.origins.a.assertions.length).toBe(1);
});

// Names may have 256 characters each. What does not fit is left out: an origin's server refuses a head of more than 4 KiB.
test.each([
  ["of 256 ASCII characters", "x".repeat(256), true],
  ["of 150 characters beyond ASCII, with which the token fits and the assertion does not", "\u6f22".repeat(150), false],
  ["of 256 characters beyond ASCII, with which the token does not fit", "\u6f22".repeat(256), false],
])("a user and tenant with names %s come in", async (_, name, resumable) => {
  const requests = fakeOrigins(upgraded);
  const page = `https://${"a.".repeat(20)}test`;
  const ticket = await ticketFor(page, { sub: name, tenant: name });
  expect((await openStream({ ...offer(ticket), origin: page })).status).toBe(101);
  const assertion = requests[0]?.headers.get("authorization")?.slice("Bearer ".length) ?? "";
  expect(assertion.length).toBeLessThanOrEqual(edgeLimits.assertionBytesMax);
  const { sub, resume } = decodeJwt<AssertionClaims>(assertion);
  expect(sub).toBe(name);
  expect(resume === undefined).toBe(!resumable);
  expect(resume?.length ?? 0).toBeLessThanOrEqual(limits.resumeTokenBytesMax);
});

// A token is worth its session to whoever reads it.
test("neither log nor sentence nor header shows a token, a ticket or an assertion, whatever is wrong", async () => {
  const fleet = fakeFleet("a", "b");
  const token = await begun(fleet, "a", shop);
  const ticket = await ticketFor(shop);
  const said: unknown[] = [];
  const logged: unknown[] = [];
  for (const level of ["warn", "error"] as const) vi.spyOn(console, level).mockImplementation((...words) => void logged.push(words));
  const say = async (given: FakeFleet<string>, ...offered: string[]) => {
    const response = await openStream({ "sec-websocket-protocol": offered.join(", "), origin: shop }, given.bindings);
    said.push([...response.headers], (await listen(response)).messages);
  };
  await say(fleet, "millrace.v9", `resume.${token}`);
  await say(fleet, "millrace.v9", token);
  await say(fleet, `resume.${token}`, "elsewhere");
  await say(fleet, "millrace.v1", `resume.${changed(token)}`);
  await say(fleet, "millrace.v1", `resume.${ticket}`);
  await say(fleet, "millrace.v1", `ticket.${token}`);
  for (const state of ["loading", "unreachable"] as const) {
    fleet.origins.a.state = state;
    fleet.origins.b.state = state;
    await say(fleet, "millrace.v1", `resume.${token}`);
    await say(fleet, "millrace.v1", `resume.${token}`, "elsewhere");
    await say(fleet, "millrace.v1", `ticket.${ticket}`);
  }
  const { bindings: broken } = fakeFleet("a");
  await say({ ...fleet, bindings: { ...broken, EDGE_SIGNING_KEY: "x" } }, "millrace.v1", `resume.${token}`);
  expect(logged.length).toBeGreaterThan(0);
  expect(said.length).toBe(26);
  const shown = JSON.stringify([said, logged]);
  const assertions = Object.values(fleet.origins).flatMap((origin) => origin.assertions);
  const secrets = [token, changed(token), ticket, ...assertions.map(({ resume }) => resume ?? token)];
  for (const part of secrets.flatMap((secret) => secret.split(".").slice(1))) expect(shown).not.toContain(part.slice(0, 16));
  expect(shown).not.toContain("Bearer");
  expect(shown).not.toContain(JSON.parse(bindings.EDGE_SIGNING_KEY ?? "").d);
});
