import { once } from "node:events";
import type { IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type WebSocket, WebSocketServer } from "ws";
import { fetchTicket } from "../../client/ticket.js";
import { type Stack, startStack } from "../support/stack.js";
import { RawClient, within } from "./support.js";

/** In the origin's place, a server that would take anything, compression too, and shows what the edge sends it. */
let origin: WebSocketServer;
let stack: Stack;
let upgrades: { socket: WebSocket; request: IncomingMessage }[];

beforeAll(async () => {
  origin = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: true, handleProtocols: ([first]) => first ?? false });
  await once(origin, "listening");
  upgrades = [];
  origin.on("connection", (socket: WebSocket, request: IncomingMessage) => upgrades.push({ socket, request }));
  stack = await startStack({ originUrl: `http://127.0.0.1:${(origin.address() as AddressInfo).port}` });
});
afterAll(async () => {
  await stack?.stop();
  origin.close();
});

async function relayed(headers: Record<string, string> = {}): Promise<{ client: RawClient; socket: WebSocket; request: IncomingMessage }> {
  const { ticket } = await fetchTicket(stack.edgeUrl);
  const client = RawClient.to(stack, ["millrace.v1", `ticket.${ticket}`], headers);
  await within(once(client.socket, "open"), "the open socket");
  const upgrade = upgrades.at(-1);
  if (!upgrade) throw new Error("the origin saw no upgrade");
  return { client, ...upgrade };
}

test("the origin is shown the assertion and nothing of the client's: no header, cookie, ticket, address or extension", async () => {
  const { client, request } = await relayed({
    cookie: "session=1",
    "user-agent": "browser",
    "x-forwarded-for": "192.0.2.1",
    "accept-language": "en",
  });
  expect(Object.keys(request.headers).sort()).toEqual([
    "authorization",
    "connection",
    "host",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "upgrade",
  ]);
  expect(request.headers["sec-websocket-protocol"]).toBe("millrace.v1");
  expect(request.url).toBe("/v1/stream");
  client.socket.close();
});

// ws offers permessage-deflate, as browsers do, and this origin would take it.
test("no extension is negotiated on either side, nor with a client that is refused", async () => {
  const { client, socket } = await relayed();
  expect(client.socket.extensions).toBe("");
  expect(client.response?.headers["sec-websocket-extensions"]).toBeUndefined();
  expect(socket.extensions).toBe("");
  expect(client.socket.protocol).toBe("millrace.v1");
  client.socket.close();
  const refused = RawClient.to(stack, ["millrace.v1"]);
  await within(refused.closed, "the refusal");
  expect(refused.socket.extensions).toBe("");
});

// The Workers API shows a script whole messages and answers pings itself; a ping that comes through was carried below it.
test("the runtime carries frames, not the script: even pings pass from end to end, both ways", async () => {
  const { client, socket } = await relayed();
  const heard = once(client.socket, "ping");
  const answered = once(socket, "pong");
  socket.ping("are you there?");
  expect(String((await within(heard, "the ping"))[0])).toBe("are you there?");
  expect(String((await within(answered, "the pong"))[0])).toBe("are you there?");
  client.socket.close();
});

test.each([1000, 4400, 4503])("the origin's close code %i and reason reach the client", async (code) => {
  const { client, socket } = await relayed();
  socket.close(code, "why");
  expect(await within(client.closed, "the close")).toEqual({ code, reason: "why" });
});

test.each([1000, 4000])("the client's close code %i and reason reach the origin", async (code) => {
  const { client, socket } = await relayed();
  const closed = once(socket, "close");
  client.socket.close(code, "bye");
  const [heard, reason] = await within(closed, "the close");
  expect([heard, String(reason)]).toEqual([code, "bye"]);
});

test("a side that vanishes without a word ends the other as 1006", async () => {
  const first = await relayed();
  first.socket.terminate();
  expect((await within(first.client.closed, "the client's close")).code).toBe(1006);
  const second = await relayed();
  const closed = once(second.socket, "close");
  second.client.socket.terminate();
  expect((await within(closed, "the origin's close"))[0]).toBe(1006);
});
