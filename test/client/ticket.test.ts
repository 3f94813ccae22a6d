import { afterEach, expect, test } from "vitest";
import { WebSocket } from "ws";
import { connect } from "../../client/dial.js";
import { fetchTicket } from "../../client/ticket.js";
import { ScriptedEdge } from "../support/scriptedEdge.js";

let edge: ScriptedEdge | undefined;

afterEach(async () => {
  await edge?.stop();
  edge = undefined;
});

test("the customer's token travels in the header, and the ticket in the subprotocol", async () => {
  let authorization: string | undefined;
  edge = await ScriptedEdge.start({
    onTicket: (request, answer) => {
      authorization = request.headers.authorization;
      answer.end(JSON.stringify({ ticket: "abc", expiresAt: 1, url: `ws://127.0.0.1:${edge?.port}/v1/stream` }));
    },
  });
  const connection = await connect({ edge: edge.url, token: "jwt", WebSocket });
  connection.close();
  expect(authorization).toBe("Bearer jwt");
});

test("the edge's refusal keeps its code and sentence", async () => {
  edge = await ScriptedEdge.start({
    onTicket: (_, answer) => answer.writeHead(401).end(JSON.stringify({ error: { code: "credential_missing", message: "send a JWT" } })),
  });
  await expect(fetchTicket(edge.url)).rejects.toMatchObject({ code: "credential_missing", message: "send a JWT", retry: "never" });
});

test("retry-after becomes milliseconds", async () => {
  edge = await ScriptedEdge.start({
    onTicket: (_, answer) =>
      answer.writeHead(503, { "retry-after": "3" }).end(JSON.stringify({ error: { code: "overloaded", message: "busy" } })),
  });
  await expect(fetchTicket(edge.url)).rejects.toMatchObject({ code: "overloaded", retryAfterMs: 3_000 });
});

// A proxy's error page is not the edge's word, and still yields a sentence.
test("an answer that is not the edge's", async () => {
  edge = await ScriptedEdge.start({ onTicket: (_, answer) => answer.writeHead(502).end("<h1>Bad gateway</h1>") });
  await expect(fetchTicket(edge.url)).rejects.toMatchObject({ code: "internal", message: expect.stringContaining("answered 502") });
  edge.script = { onTicket: (_, answer) => answer.end("{}") };
  await expect(fetchTicket(edge.url)).rejects.toMatchObject({ message: expect.stringContaining("not a ticket") });
});

test("an edge that is not there, and one that says nothing", async () => {
  edge = await ScriptedEdge.start({ onTicket: () => {} });
  await expect(fetchTicket(edge.url, undefined, 50)).rejects.toMatchObject({ code: "connection_timeout" });
  const { url } = edge;
  await edge.stop();
  edge = undefined;
  await expect(fetchTicket(url)).rejects.toMatchObject({
    code: "connection_lost",
    message: `the edge at ${url} cannot be reached (ECONNREFUSED)`,
  });
});
