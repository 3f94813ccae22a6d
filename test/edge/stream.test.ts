import { createLocalJWKSet, decodeJwt, jwtVerify, SignJWT } from "jose";
import { expect, test, vi } from "vitest";
import { parseAssertion } from "../../shared/assertion.js";
import { Op } from "../../shared/protocol.js";
import {
  bindings,
  edgeKey,
  errorOf,
  expectRefusal,
  fakeOrigins,
  isolateTests,
  listen,
  makeKey,
  offer,
  openStream,
  request,
  ticketFor,
  upgraded,
} from "./support.js";

isolateTests();

const shop = "https://shop.test";
const nowS = () => Math.floor(Date.now() / 1_000);

test("the origin's own 101 response is what the client gets", async () => {
  const answer = upgraded();
  fakeOrigins(() => answer);
  expect(await openStream(offer(await ticketFor()))).toBe(answer);
});

test("the upstream request has three headers, none of which is the client's", async () => {
  const requests = fakeOrigins(upgraded);
  const ticket = await ticketFor(shop);
  await openStream({
    ...offer(ticket),
    origin: shop,
    cookie: "session=1",
    "user-agent": "browser",
    "x-forwarded-for": "192.0.2.1",
    "sec-websocket-extensions": "permessage-deflate",
  });
  expect(requests.map(({ url, method }) => [method, url])).toEqual([["GET", "http://origin-1.test:9101/v1/stream"]]);
  const headers = Object.fromEntries(requests[0]?.headers ?? []);
  expect(headers).toEqual({
    upgrade: "websocket",
    "sec-websocket-protocol": "millrace.v1",
    authorization: expect.stringMatching(/^Bearer [\w.-]+$/),
  });
  expect(JSON.stringify(headers)).not.toContain(ticket);
});

test("the assertion is what an origin accepts: signed by the edge, for that origin, of the ticket's user, and no more", async () => {
  const requests = fakeOrigins(upgraded);
  const ticket = await ticketFor(undefined, { class: "batch", limits: { tokensMax: 100 } });
  await openStream(offer(ticket));
  const jws = requests[0]?.headers.get("authorization")?.slice("Bearer ".length) ?? "";
  const { payload, protectedHeader } = await jwtVerify(jws, createLocalJWKSet({ keys: [edgeKey.publicJwk] }));
  expect(protectedHeader).toEqual({ alg: "EdDSA", typ: "millrace-assertion+jwt" });
  const claims = parseAssertion(payload, "origin-1", nowS());
  expect(payload).toEqual(claims);
  expect(claims).toEqual({
    iss: "millrace-edge",
    aud: "origin-1",
    sub: "ada",
    tenant: "analytical",
    class: "batch",
    limits: { streamsMax: 64, tokensMax: 100 },
    epoch: "epoch-1",
    resume: expect.stringMatching(/^[\w-]+\.[\w-]+\.[\w-]+$/),
    sessionExp: (decodeJwt(ticket).iat ?? 0) + 43_200,
    upgrade: { redeemMs: expect.any(Number), chooseMs: expect.any(Number), connectMs: expect.any(Number) },
    iat: expect.any(Number),
    exp: claims.iat + 10,
    jti: expect.any(String),
  });
});

// A session that began on such an origin could never be told that its epoch is dead.
test("an origin that answers no probe is tried all the same, without an epoch and without a resume token", async () => {
  const requests: Request[] = [];
  vi.stubGlobal("fetch", async (url: string, init: RequestInit) => {
    if (url.endsWith("/readyz")) return new Response("upgrade required", { status: 426 });
    requests.push(new Request(url, init));
    return upgraded();
  });
  const ORIGINS = JSON.stringify([{ name: "silent", url: "http://silent.test" }]);
  expect((await openStream(offer(await ticketFor()), { ...bindings, ORIGINS })).status).toBe(101);
  const claims = decodeJwt(requests[0]?.headers.get("authorization")?.slice("Bearer ".length) ?? "");
  expect(claims).toMatchObject({ aud: "silent", sessionExp: expect.any(Number) });
  expect(claims).not.toHaveProperty("epoch");
  expect(claims).not.toHaveProperty("resume");
});

test("a browser's ticket works from its own page, and an agent's without an Origin", async () => {
  fakeOrigins(upgraded);
  expect((await openStream({ ...offer(await ticketFor(shop)), origin: shop })).status).toBe(101);
  expect((await openStream(offer(await ticketFor()))).status).toBe(101);
});

test.each([
  ["another page", shop, "https://evil.test"],
  ["an agent", shop, undefined],
  ["a page, when it was an agent's", undefined, shop],
])("a ticket brought by %s is refused", async (_, issuedTo, broughtBy) => {
  const response = await openStream({ ...offer(await ticketFor(issuedTo)), ...(broughtBy ? { origin: broughtBy } : {}) });
  await expectRefusal(response, "page_origin_refused", "the ticket was issued to");
});

test("a ticket is taken until its 60 s are over, and no longer", async () => {
  fakeOrigins(upgraded);
  vi.useFakeTimers({ toFake: ["Date"] });
  const ticket = await ticketFor();
  vi.advanceTimersByTime(59_000);
  expect((await openStream(offer(ticket))).status).toBe(101);
  vi.advanceTimersByTime(1_000);
  await expectRefusal(await openStream(offer(ticket)), "ticket_expired", "older than 60 s");
});

const claims = { tenant: "t", class: "chat", limits: { streamsMax: 1, tokensMax: 1 }, page: null, sub: "u", iss: "millrace-edge" };

test.each([
  ["signed by another key", async () => sign({ typ: "millrace-ticket+jwt" }, (await makeKey()).sign)],
  ["that is an assertion", () => sign({ typ: "millrace-assertion+jwt" }, edgeKey.sign)],
  ["that is a resume token", () => sign({ typ: "millrace-resume+jwt" }, edgeKey.sign)],
  ["of another version, without its time of issue", () => sign({ typ: "millrace-ticket+jwt" }, edgeKey.sign)],
  ["of no type", () => sign({}, edgeKey.sign)],
  ["whose payload was changed", async () => changed(await ticketFor())],
  ["that is garbage", async () => "abc"],
  ["of 10 kB", async () => "x".repeat(10_000)],
])("a ticket %s is forged", async (_, make) => {
  await expectRefusal(await openStream(offer(await make())), "ticket_invalid", "the ticket");
});

function sign(header: { typ?: string }, key: CryptoKey): Promise<string> {
  return new SignJWT({ ...claims, exp: nowS() + 60 }).setProtectedHeader({ alg: "EdDSA", ...header }).sign(key);
}

function changed(ticket: string): string {
  const [header, , signature] = ticket.split(".");
  const payload = btoa(JSON.stringify({ ...decodeJwt(ticket), tenant: "another" })).replace(/=+$/, "");
  return [header, payload.replaceAll("+", "-").replaceAll("/", "_"), signature].join(".");
}

test("without a ticket the socket is refused, with the version selected that the browser offered", async () => {
  const response = await openStream({ "sec-websocket-protocol": "millrace.v1" });
  expect(response.headers.get("sec-websocket-protocol")).toBe("millrace.v1");
  await expectRefusal(response, "ticket_missing", "fetch a ticket");
});

// A browser fails a socket that selects none of its subprotocols, and would never see the ERROR.
test("an unknown version is refused by name, on a socket that selects it", async () => {
  const response = await openStream({ "sec-websocket-protocol": "millrace.v9, ticket.secret" });
  expect(response.headers.get("sec-websocket-protocol")).toBe("millrace.v9");
  const heard = await listen(response);
  expect(heard.messages).toEqual([[Op.ERROR, 0, "version_unsupported", expect.stringContaining('"millrace.v9"'), 0]]);
  expect(JSON.stringify(heard.messages)).not.toContain("secret");
  expect(heard.closeCode).toBe(4426);
});

test("a socket that offers its ticket alone is refused on one that does not say the ticket again", async () => {
  const response = await openStream({ "sec-websocket-protocol": "ticket.secret" });
  expect(response.headers.get("sec-websocket-protocol")).toBeNull();
  await expectRefusal(response, "version_unsupported", '"ticket...."');
});

test("a socket that offers no subprotocol selects none", async () => {
  const response = await openStream({});
  expect(response.headers.get("sec-websocket-protocol")).toBeNull();
  await expectRefusal(response, "version_unsupported", "no subprotocol is offered");
});

test.each([["EDGE_SIGNING_KEY"], ["ORIGINS"]] as const)("an edge without %s refuses every socket and names it", async (name) => {
  const { [name]: _, ...others } = bindings;
  await expectRefusal(await openStream(offer(await ticketFor()), others), "edge_unconfigured", `${name} is not set`);
  const plain = await errorOf(await request("/v1/stream", {}, others));
  expect(plain).toMatchObject({ status: 503, code: "edge_unconfigured" });
});

test("an origin's refusal is passed on with its code, sentence and time to wait", async () => {
  fakeOrigins(() =>
    Response.json({ error: { code: "model_loading", message: "42% loaded" } }, { status: 503, headers: { "retry-after": "2" } }),
  );
  const heard = await listen(await openStream(offer(await ticketFor())));
  expect(heard.messages).toEqual([[Op.ERROR, 0, "model_loading", "42% loaded", 2_000]]);
  expect(heard.closeCode).toBe(4503);
});

test.each([
  ["cannot be reached", () => Promise.reject(new TypeError("connection refused")), "origin origin-1 could not be reached"],
  ["is something else", () => new Response("<h1>hello</h1>"), "origin origin-1 answered 200"],
  ["refuses with a code of nobody's", () => Response.json({ error: { code: "oops", message: "" } }, { status: 500 }), "answered 500"],
  ["refuses at length", () => new Response("x".repeat(100_000), { status: 503 }), "answered 503"],
  ["redirects", () => new Response(null, { status: 302, headers: { location: "http://elsewhere.test" } }), "answered 302"],
])("an origin that %s is unreachable", async (_, answer, sentence) => {
  fakeOrigins(answer);
  await expectRefusal(await openStream(offer(await ticketFor())), "origin_unreachable", sentence);
});

test.each([
  ["nothing", {}, 426, "version_unsupported"],
  ["no ticket", { "sec-websocket-protocol": "millrace.v1" }, 401, "ticket_missing"],
  ["a forged ticket", offer("a.b.c"), 401, "ticket_invalid"],
])("a plain HTTP request with %s gets the status", async (_, headers, status, code) => {
  expect(await errorOf(await request("/v1/stream", { headers }))).toMatchObject({ status, code });
});

test("a plain HTTP request with a good ticket is told to upgrade, and reaches no origin", async () => {
  const requests = fakeOrigins(upgraded);
  const error = await errorOf(await request("/v1/stream", { headers: offer(await ticketFor()) }));
  expect(error).toMatchObject({ status: 426, code: "version_unsupported" });
  expect(error.message).toContain("WebSocket");
  expect(requests).toEqual([]);
});

test("a fault of the edge's own is said without its details", async () => {
  const logged = vi.spyOn(console, "error").mockImplementation(() => {});
  const broken = {
    webSocket: null,
    get body(): never {
      throw new RangeError("a fault");
    },
  };
  fakeOrigins(() => broken as never);
  await expectRefusal(await openStream(offer(await ticketFor())), "internal", "its log says why");
  expect(logged).toHaveBeenCalledOnce();
});
