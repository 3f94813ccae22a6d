import { createPrivateKey, type JsonWebKeyInput } from "node:crypto";
import { SignJWT } from "jose";
import { afterAll, beforeAll, expect, test } from "vitest";
import { fetchTicket } from "../../client/ticket.js";
import { makeEdgeKeyPair } from "../../scripts/dev-keys.js";
import { encode } from "../../shared/codec.js";
import { closeCodeOf, type ErrorCode } from "../../shared/errors.js";
import { type ClientMessage, Op, type StartOptions } from "../../shared/protocol.js";
import { type Stack, startStack } from "../support/stack.js";
import { RawClient, within } from "./support.js";

let stack: Stack;
beforeAll(async () => {
  stack = await startStack({ originArgs: ["--simulated-rate", "1000", "--simulated-answer", "20"] });
});
afterAll(() => stack?.stop());

/** One ERROR on the connection, then the table's close code with the error's name as its reason. */
async function expectRefusal(client: RawClient, code: ErrorCode, sentence: RegExp): Promise<void> {
  const closed = await within(client.closed, "the close");
  const errors = client.messages.filter(([op]) => op !== Op.HELLO);
  expect(errors).toEqual([[Op.ERROR, 0, code, expect.stringMatching(sentence), expect.any(Number)]]);
  expect(closed).toEqual({ code: closeCodeOf(code), reason: code });
}

/** The path still carries an answer: what was refused broke nothing. */
async function expectAlive(client: RawClient, stream: number): Promise<void> {
  client.socket.send(encode([Op.START, stream, [["user", "hello"]], {}]));
  expect((await client.next(Op.DONE)).slice(0, 2)).toEqual([Op.DONE, stream]);
}

/** A ticket or resume token: of both only the type differs, and what each leaves unread. */
function sign(kind: "ticket" | "resume", jwk: object, expiresInS: number): Promise<string> {
  const nowS = Math.floor(Date.now() / 1_000);
  const key = createPrivateKey({ key: jwk, format: "jwk" } as JsonWebKeyInput);
  const run = { origin: "origin-1", epoch: "an earlier one" };
  return new SignJWT({ tenant: "test", class: "chat", limits: { streamsMax: 1, tokensMax: 1 }, page: null, ...run })
    .setProtectedHeader({ alg: "EdDSA", typ: `millrace-${kind}+jwt` })
    .setIssuer("millrace-edge")
    .setSubject("mallory")
    .setExpirationTime(nowS + expiresInS)
    .sign(key);
}

test("no ticket", async () => {
  await expectRefusal(RawClient.to(stack, ["millrace.v1"]), "ticket_missing", /fetch a ticket/);
});

test("an expired ticket", async () => {
  const client = RawClient.to(stack, ["millrace.v1", `ticket.${await sign("ticket", stack.privateJwk, -1)}`]);
  await expectRefusal(client, "ticket_expired", /older than 60 s/);
});

test("a ticket forged with another key", async () => {
  const client = RawClient.to(stack, ["millrace.v1", `ticket.${await sign("ticket", makeEdgeKeyPair().privateJwk, 60)}`]);
  await expectRefusal(client, "ticket_invalid", /none of this edge's/);
});

test("a ticket brought by another page", async () => {
  const { ticket } = await fetchTicket(stack.edgeUrl);
  const client = RawClient.to(stack, ["millrace.v1", `ticket.${ticket}`], { origin: "https://evil.test" });
  await expectRefusal(client, "page_origin_refused", /issued to an agent .* "https:\/\/evil\.test" brought it/);
});

test.each([
  ["forged with another key", () => sign("resume", makeEdgeKeyPair().privateJwk, 60), /none of this edge's/],
  ["of a session that is over", () => sign("resume", stack.privateJwk, -1), /began more than 12 h ago/],
  ["that is a ticket", async () => (await fetchTicket(stack.edgeUrl)).ticket, /none of this edge's/],
])("a resume token %s", async (_, make, sentence) => {
  await expectRefusal(RawClient.to(stack, ["millrace.v1", `resume.${await make()}`]), "resume_invalid", sentence);
});

// What the refusals above are to be held against: the edge asks the origin, finds that it is another run, and lets the session in.
test("a resume token of an earlier run of the origin is taken", async () => {
  const client = RawClient.to(stack, ["millrace.v1", `resume.${await sign("resume", stack.privateJwk, 60)}`]);
  await client.next(Op.HELLO);
  await expectAlive(client, 1);
});

test("an unknown version, on a socket that selects it so that a browser hears why", async () => {
  const client = RawClient.to(stack, ["millrace.v9", "ticket.x"]);
  await expectRefusal(client, "version_unsupported", /"millrace\.v9"/);
  expect(client.response?.headers["sec-websocket-protocol"]).toBe("millrace.v9");
});

test("an assertion for another audience: the origin's own sentence reaches the client", async () => {
  const misnamed = await startStack({ originName: "origin-2" });
  try {
    const { ticket } = await fetchTicket(misnamed.edgeUrl);
    const client = RawClient.to(misnamed, ["millrace.v1", `ticket.${ticket}`]);
    await expectRefusal(client, "assertion_invalid", /aud is "origin-2", but this origin is "origin-1"/);
  } finally {
    await misnamed.stop();
  }
});

test("the origin takes nobody who comes past the edge", async () => {
  const response = await fetch(`${stack.originUrl}/v1/stream`, { headers: { "sec-websocket-protocol": "millrace.v1" } });
  expect(response.status).toBe(426);
  const straight = RawClient.to({ ...stack, edgeUrl: stack.originUrl }, ["millrace.v1"], { authorization: "Bearer a.b.c" });
  const status = await within(
    new Promise((resolve) => straight.socket.on("unexpected-response", (_, { statusCode }) => resolve(statusCode))),
    "the refusal",
  );
  expect(status).toBe(401);
});

test("a text frame", async () => {
  const client = await RawClient.greeted(stack);
  client.socket.send("hello");
  await expectRefusal(client, "frame_not_binary", /binary/);
});

test.each([
  ["garbage bytes", Uint8Array.of(0xc1, 0xff, 0x00, 0x17), "frame_malformed"],
  ["an empty frame", new Uint8Array(0), "frame_malformed"],
  ["an array that is cut short", Uint8Array.of(0x94, 0x20, 0x01), "frame_malformed"],
  ["an op that only origins send", encode([Op.PING, 0, 1]), "op_unknown"],
] as const)("%s", async (_, bytes, code) => {
  const client = await RawClient.greeted(stack);
  client.socket.send(bytes);
  await expectRefusal(client, code, /./);
});

test("a 10 MB frame ends the socket as 1006, and only that socket", async () => {
  const [client, neighbour] = await Promise.all([RawClient.greeted(stack), RawClient.greeted(stack)]);
  client.socket.send(new Uint8Array(10_000_000));
  expect((await within(client.closed, "the close")).code).toBe(1006);
  await expectAlive(neighbour, 1);
});

test("a prompt of 100,000 tokens ends its stream with the numbers, and the socket lives", async () => {
  const client = await RawClient.greeted(stack);
  client.socket.send(encode([Op.START, 1, [["user", " word".repeat(100_000)]], {}]));
  const error = await client.next(Op.ERROR);
  expect(error.slice(0, 3)).toEqual([Op.ERROR, 1, "context_exceeded"]);
  expect(error[3]).toMatch(/\d{6}.*8192/);
  await expectAlive(client, 2);
});

test.each([
  ["an unknown option", [Op.START, 1, [["user", "hi"]], { colour: "red" } as StartOptions], /"colour" is unknown/],
  ["an unknown field", [Op.START, 1, [["user", "hi"]], {}, "more"] as unknown as ClientMessage, /takes 4 elements, not 5/],
  ["an unknown role", [Op.START, 1, [["wizard" as "user", "hi"]], {}], /role is "wizard"/],
  ["a temperature of 99", [Op.START, 1, [["user", "hi"]], { temperature: 99 }], /temperature is 99/],
] as [string, ClientMessage, RegExp][])("a START with %s ends its stream by name, and the socket lives", async (_, start, sentence) => {
  const client = await RawClient.greeted(stack);
  client.socket.send(encode(start));
  expect(await client.next(Op.ERROR)).toEqual([Op.ERROR, 1, "field_invalid", expect.stringMatching(sentence), 0]);
  await expectAlive(client, 2);
});

test("after all of this, neither edge nor origin has complained of itself", () => {
  expect(stack.log.filter((line) => /internal|exception|Error|fatal/i.test(line))).toEqual([]);
});
