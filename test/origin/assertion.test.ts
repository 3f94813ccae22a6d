/** The edge's word is taken only if it is the edge's, meant for this origin, and fresh. The Worker signs with jose; so do these tests. */
import { createSecretKey, generateKeyPairSync } from "node:crypto";
import { SignJWT } from "jose";
import { expect, test } from "vitest";
import { readEdgeKey, verifyAssertion } from "../../origin/assertion.js";
import { claims, edge, originName, sign } from "./support.js";

const now = (): number => Date.now() / 1_000;
const verify = (jws: string): unknown => verifyAssertion(`Bearer ${jws}`, edge.publicKey, originName, now());
const stranger = generateKeyPairSync("ed25519");

test("what the edge signed is read", async () => {
  const word = claims();
  expect(verify(await sign(word))).toEqual(word);
});

test.each([
  ["another key's signature", async () => sign(claims(), { key: stranger.privateKey }), /signature is not that of this origin's edge key/],
  ["a ticket of the same key", async () => sign(claims(), { typ: "millrace-ticket+jwt" }), /type is not millrace-assertion\+jwt/],
  ["another origin's assertion", async () => sign(claims({ aud: "origin-2" })), /aud is "origin-2", but this origin is "origin-test"/],
  ["an expired one", async () => sign(claims({ iat: now() - 60, exp: now() - 50 })), /it expired 50 s ago/],
  ["one that lives too long", async () => sign(claims({ exp: Math.floor(now()) + 3_600 })), /more than 10/],
  ["one without limits", async () => sign({ ...claims(), limits: undefined }), /limits lacks streamsMax/],
  ["no JWS", async () => "abc.def", /not a bearer JWS of three parts/],
  ["a header that is no JSON", async () => "YWJj.YWJj.YWJj", /a part of it is not JSON/],
  ["one of 100 KB", async () => `${"a".repeat(100_000)}.a.a`, /100,?011 bytes, over/],
])("%s is refused", async (_, jws, why) => {
  const text = await jws();
  expect(() => verify(text)).toThrow(expect.objectContaining({ code: "assertion_invalid", message: expect.stringMatching(why) }));
});

test("nothing is refused too", () => {
  expect(() => verifyAssertion("", edge.publicKey, originName, now())).toThrow(/there is none/);
});

// The classic forgeries: no algorithm, and the public key taken for a shared secret.
test("an algorithm other than EdDSA is refused", async () => {
  const [header, payload] = [{ alg: "none", typ: "millrace-assertion+jwt" }, claims()].map((part) =>
    Buffer.from(JSON.stringify(part)).toString("base64url"),
  );
  expect(() => verify(`${header}.${payload}.AAAA`)).toThrow(/algorithm is not EdDSA/);
  const secret = createSecretKey(edge.publicKey.export({ format: "der", type: "spki" }));
  const hmac = await new SignJWT({ ...claims() }).setProtectedHeader({ alg: "HS256", typ: "millrace-assertion+jwt" }).sign(secret);
  expect(() => verify(hmac)).toThrow(/algorithm is not EdDSA/);
});

// One changed character anywhere breaks it.
test("a tampered payload is refused", async () => {
  const [header, payload, signature] = (await sign(claims())).split(".") as [string, string, string];
  const forged = Buffer.from(JSON.stringify(claims({ tenant: "tenant-2" }))).toString("base64url");
  expect(() => verify(`${header}.${forged}.${signature}`)).toThrow(/signature/);
  expect(() => verify(`${header}.${payload}.${signature.slice(0, -4)}AAAA`)).toThrow(/signature/);
});

test("the edge's key is a public Ed25519 JWK", () => {
  const jwk = edge.publicKey.export({ format: "jwk" });
  expect(readEdgeKey(JSON.stringify(jwk)).equals(edge.publicKey)).toBe(true);
  expect(() => readEdgeKey("{")).toThrow(/not JSON/);
  expect(() => readEdgeKey("null")).toThrow(/not an Ed25519 JWK/);
  expect(() => readEdgeKey(JSON.stringify({ ...jwk, crv: "X25519" }))).toThrow(/not an Ed25519 JWK/);
  expect(() => readEdgeKey(JSON.stringify(edge.privateKey.export({ format: "jwk" })))).toThrow(/holds the private key/);
});
