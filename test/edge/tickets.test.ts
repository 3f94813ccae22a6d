import { decodeJwt, decodeProtectedHeader, SignJWT } from "jose";
import { expect, test } from "vitest";
import { bindings, customerJwt, customerSecret, edgeKey, errorOf, isolateTests, makeKey, postTicket } from "./support.js";

isolateTests();

const bearer = (jwt: string) => ({ authorization: `Bearer ${jwt}` });

test("a JWT of the configured EdDSA key buys a ticket that names user, tenant, class and limits, for 60 s", async () => {
  const response = await postTicket({ ...bearer(await customerJwt({ class: "voice" })), origin: "https://shop.test" });
  expect(response.status).toBe(200);
  expect(response.headers.get("cache-control")).toBe("no-store");
  const { ticket, expiresAt, url } = (await response.json()) as { ticket: string; expiresAt: number; url: string };
  expect(url).toBe("wss://edge.test/v1/stream");
  expect(decodeProtectedHeader(ticket)).toEqual({ alg: "EdDSA", typ: "millrace-ticket+jwt" });
  const claims = decodeJwt(ticket);
  expect(claims).toMatchObject({ sub: "ada", tenant: "analytical", class: "voice", page: "https://shop.test", exp: expiresAt });
  expect(claims.limits).toEqual({ streamsMax: 64, tokensMax: 16_384 });
  expect(expiresAt - (claims.iat ?? 0)).toBe(60);
});

test("a ticket for an agent, which sends no Origin, is bound to none", async () => {
  const { ticket } = (await (await postTicket(bearer(await customerJwt()))).json()) as { ticket: string };
  expect(decodeJwt(ticket).page).toBeNull();
});

test("a JWT may lower the limits but not raise them", async () => {
  const jwt = await customerJwt({ limits: { streamsMax: 2, tokensMax: 1_000_000 } });
  const { ticket } = (await (await postTicket(bearer(jwt))).json()) as { ticket: string };
  expect(decodeJwt(ticket).limits).toEqual({ streamsMax: 2, tokensMax: 16_384 });
});

test("HS256 is taken where its secret is configured, beside EdDSA or alone", async () => {
  const jwt = await customerJwt({}, new TextEncoder().encode(customerSecret), "HS256");
  expect((await postTicket(bearer(jwt), { ...bindings, CUSTOMER_JWT_SECRET: customerSecret })).status).toBe(200);
  const { CUSTOMER_JWT_PUBLIC_KEY: _, ...others } = bindings;
  const alone = { ...others, CUSTOMER_JWT_SECRET: customerSecret };
  expect((await postTicket(bearer(jwt), alone)).status).toBe(200);
  expect(await errorOf(await postTicket(bearer(await customerJwt()), alone))).toMatchObject({ status: 401, code: "credential_invalid" });
});

// The classic confusion: the public key, known to all, used as the secret of an HS256 token.
test("an HS256 JWT is refused where only a public key is configured, even when it is signed with that key's text", async () => {
  const jwt = await customerJwt({}, new TextEncoder().encode(bindings.CUSTOMER_JWT_PUBLIC_KEY), "HS256");
  const error = await errorOf(await postTicket(bearer(jwt)));
  expect(error).toMatchObject({ status: 401, code: "credential_invalid" });
  expect(error.message).toContain('its alg is "HS256"; this edge takes EdDSA');
});

test.each([
  ["signed by another key", async () => customerJwt({}, (await makeKey()).sign)],
  ["expired", () => customerJwt({ exp: Math.floor(Date.now() / 1_000) - 60 })],
  ["without an expiry", () => new SignJWT({ sub: "ada", tenant: "t" }).setProtectedHeader({ alg: "EdDSA" }).sign(edgeKey.sign)],
  ["without a subject", () => customerJwt({ sub: undefined as never })],
  ["with an empty subject", () => customerJwt({ sub: "" })],
  ["without a tenant", () => customerJwt({ tenant: undefined })],
  ["with a tenant that is no text", () => customerJwt({ tenant: 7 })],
  ["of an unknown class", () => customerJwt({ class: "first" })],
  ["with limits that are no counts", () => customerJwt({ limits: { streamsMax: 0 } })],
  ["without a signature", async () => `${(await customerJwt()).split(".").slice(0, 2).join(".")}.`],
  ["of alg none", async () => `${btoa('{"alg":"none"}')}.${(await customerJwt()).split(".")[1]}.AA`],
  ["that is no JWT", async () => "hello"],
  ["of 10 kB", async () => `${await customerJwt({ pad: "x".repeat(10_000) })}`],
])("a JWT %s is refused", async (_, make) => {
  expect(await errorOf(await postTicket(bearer(await make())))).toMatchObject({ status: 401, code: "credential_invalid" });
});

test("without a JWT a ticket is given only where an anonymous tenant is configured, each time to another user", async () => {
  expect(await errorOf(await postTicket({}))).toMatchObject({ status: 401, code: "credential_missing" });
  const users = new Set<string | undefined>();
  for (let count = 0; count < 2; count++) {
    const { ticket } = (await (await postTicket({}, { ...bindings, ANONYMOUS_TENANT: "dev" })).json()) as { ticket: string };
    expect(decodeJwt(ticket)).toMatchObject({ tenant: "dev", class: "chat" });
    users.add(decodeJwt(ticket).sub);
  }
  expect(users.size).toBe(2);
});

test("a bad JWT is not forgiven where anonymous tickets exist", async () => {
  const error = await errorOf(await postTicket(bearer("a.b.c"), { ...bindings, ANONYMOUS_TENANT: "dev" }));
  expect(error).toMatchObject({ status: 401, code: "credential_invalid" });
});

test.each([
  ["no signing key", { EDGE_SIGNING_KEY: undefined }, "EDGE_SIGNING_KEY is not set"],
  ["a signing key that is no JSON", { EDGE_SIGNING_KEY: "secret" }, "EDGE_SIGNING_KEY cannot be used"],
  ["a signing key without its private part", { EDGE_SIGNING_KEY: JSON.stringify(edgeKey.publicJwk) }, "EDGE_SIGNING_KEY cannot be used"],
  ["no key for JWTs", { CUSTOMER_JWT_PUBLIC_KEY: undefined }, "neither CUSTOMER_JWT_PUBLIC_KEY nor CUSTOMER_JWT_SECRET is set"],
  ["a public key that is none", { CUSTOMER_JWT_PUBLIC_KEY: "{}" }, "CUSTOMER_JWT_PUBLIC_KEY cannot be used"],
])("an edge with %s answers 503 and names the binding", async (_, missing, sentence) => {
  const given = Object.fromEntries(Object.entries({ ...bindings, ...missing }).filter(([, value]) => value !== undefined));
  const error = await errorOf(await postTicket(bearer(await customerJwt()), given));
  expect(error).toMatchObject({ status: 503, code: "edge_unconfigured" });
  expect(error.message).toContain(sentence);
  expect(error.message).not.toContain("secret");
});

test("a secret shorter than 32 bytes is named as a fault of the configuration", async () => {
  const jwt = await customerJwt({}, new TextEncoder().encode("x".repeat(31)), "HS256");
  const error = await errorOf(await postTicket(bearer(jwt), { ...bindings, CUSTOMER_JWT_SECRET: "x".repeat(31) }));
  expect(error).toMatchObject({ status: 503, code: "edge_unconfigured" });
  expect(error.message).toContain("CUSTOMER_JWT_SECRET");
});

test("pages of other origins may read a ticket that a JWT paid for, and any refusal, but no anonymous ticket", async () => {
  const shop = { origin: "https://shop.test" };
  const allowed = "access-control-allow-origin";
  expect((await postTicket({ ...shop, ...bearer(await customerJwt()) })).headers.get(allowed)).toBe("*");
  expect((await postTicket(shop)).headers.get(allowed)).toBe("*");
  expect((await postTicket(shop, { ...bindings, ANONYMOUS_TENANT: "dev" })).headers.get(allowed)).toBeNull();
});
