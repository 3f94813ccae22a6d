/** The load client of `npm run bench -- relay` against a server that says what a test wants: what it counts is what was sent. */
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { afterEach, expect, test, vi } from "vitest";
import { Stamps } from "../../origin/simulatedStamps.js";
import { type Head, LoadClient, type LoadPlan, type LoadReport } from "../../scripts/bench/relay/loadClient.js";
import { encode } from "../../shared/codec.js";
import { Op, type ServerMessage } from "../../shared/protocol.js";
import { hello } from "../support/scriptedEdge.js";

const stamps = new Stamps();
const waitMsMax = 10_000;
let server: Server | undefined;
let client: LoadClient | undefined;
afterEach(async () => {
  await client?.quit();
  server?.closeAllConnections();
  server?.close();
});

interface Peer {
  socket: Socket;
  /** The header lines of its upgrade, by their names. */
  headers: NodeJS.Dict<string | string[]>;
  /** Payloads of what it sent. */
  received: Buffer[];
}

/** A server that takes every upgrade, and what it heard. Only short frames come from the client, each in one piece. */
async function listen(speech: LoadPlan["speech"], onOpen: (peer: Peer) => void): Promise<{ port: number; peers: Peer[] }> {
  const peers: Peer[] = [];
  server = createServer().on("upgrade", (request, socket: Socket) => {
    const peer = { socket, headers: request.headers, received: [] as Buffer[] };
    peers.push(peer);
    socket.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    socket.on("error", () => {});
    socket.on("data", (bytes: Buffer) => {
      for (let at = 0; at < bytes.length; at += 6 + ((bytes[at + 1] as number) & 0x7f)) {
        expect(bytes[at]).toBe(speech === "millrace" ? 0x82 : 0x81);
        peer.received.push(bytes.subarray(at + 6, at + 6 + ((bytes[at + 1] as number) & 0x7f)));
      }
    });
    onOpen(peer);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { port: (server.address() as AddressInfo).port, peers };
}

/** A WebSocket frame as a server sends it. */
function frame(payload: Uint8Array | string): Buffer {
  const bytes = Buffer.from(payload as string);
  const length = bytes.length < 126 ? [bytes.length] : [126, bytes.length >> 8, bytes.length & 0xff];
  return Buffer.concat([Buffer.from([typeof payload === "string" ? 0x81 : 0x82, ...length]), bytes]);
}

const said = (...messages: ServerMessage[]): Buffer => Buffer.concat(messages.map((message) => frame(encode(message))));
/** A token that was due so long ago. */
const token = (agoMs: number): string => stamps.at(performance.now() - agoMs).text;

async function start(port: number, changes: Partial<LoadPlan> = {}): Promise<LoadClient> {
  const heads: Head[] = [["x-user: 1"], ["x-user: 2"]];
  const plan = { port, path: "/v1/stream", speech: "millrace" as const, startsPerSecond: 1_000, deadlineMs: 500, heads };
  client = await LoadClient.start({ ...plan, starts: [Buffer.from("start")], ...changes });
  await client.opened;
  return client;
}

/** The first report that fulfils the condition. */
function reportWhen(of: LoadClient, holds: (report: LoadReport) => boolean): Promise<LoadReport> {
  return vi.waitFor(
    async () => {
      const report = await of.report();
      expect(report).toSatisfy(holds);
      return report;
    },
    { timeout: waitMsMax, interval: 10 },
  );
}

// Each socket brings its own header, sends its START once all are open, and its tokens are counted one by one, whatever frames they come in and
// however these are cut.
test("tokens are counted and timed, and what does not follow is a hole", async () => {
  const { port, peers } = await listen("millrace", ({ socket }) => socket.write(said([Op.HELLO, 0, hello])));
  const load = await start(port);
  await vi.waitFor(() => expect(peers.map(({ received }) => String(received))).toEqual(["start", "start"]), waitMsMax);
  expect(peers.map(({ headers }) => headers["x-user"])).toEqual(["1", "2"]);
  const [one, two] = peers as [Peer, Peer];
  load.measure();
  await load.report();
  const first = said([Op.STARTED, 1, "answer-1", 9, 0, { ttftMs: 2_000, itlMs: 150 }], [Op.TOKENS, 1, 1, token(40), 0]);
  one.socket.write(first.subarray(0, 30));
  await load.report();
  one.socket.write(first.subarray(30));
  one.socket.write(said([Op.TOKENS, 1, 3, token(40) + token(40), 1], [Op.TOKENS, 1, 5, token(40), 0], [Op.PING, 0, 7]));
  two.socket.write(said([Op.TOKENS, 1, 1, "text", 0]));
  await load.answered;
  const seen = await reportWhen(load, ({ tokens, unstamped }) => tokens === 5 && unstamped === 1);
  expect(seen).toMatchObject({ frames: 4, open: 2, lost: 0, running: 2, holes: 2, refusals: {}, started: 2, unanswered: 0, late: 0 });
  expect(seen.latencyMs.count).toBe(4);
  expect(seen.latencyMs.p50).toBeGreaterThanOrEqual(40);
  expect(seen.latencyMs.max).toBeLessThan(waitMsMax);
  await vi.waitFor(() => expect(one.received.at(-1)?.toString("hex")).toBe("932200ce00000007"), waitMsMax);
});

// A token that comes late, a refusal, a socket that goes and one that never opens are told apart, and none of them for good ones.
test("what goes wrong is counted as what it is", async () => {
  let opened = 0;
  const { port, peers } = await listen("millrace", ({ socket }) => {
    if (++opened === 4) socket.end("");
    else socket.write(said([Op.HELLO, 0, hello]));
  });
  const heads: Head[] = [[], [], [], []];
  const load = await start(port, { heads, deadlineMs: 0.001 });
  expect(await load.opened).toMatchObject({ open: 3, lost: 1 });
  await vi.waitFor(() => expect(peers.filter(({ received }) => received.length === 1)).toHaveLength(3), waitMsMax);
  const ready = peers.filter(({ received }) => received.length === 1) as [Peer, Peer, Peer];
  ready[0].socket.write(said([Op.TOKENS, 1, 1, token(0), 0]));
  ready[1].socket.write(said([Op.ERROR, 1, "overloaded", "too many wait", 1_000]));
  ready[2].socket.write(Buffer.from([0x88, 2, 4503 >> 8, 4503 & 0xff]));
  await load.answered;
  const seen = await load.report();
  expect(seen).toMatchObject({ started: 3, late: 1, refusedLate: 1, unanswered: 1, running: 1, open: 2, lost: 2 });
  expect(seen.refusals).toEqual({ overloaded: 1 });
  expect(seen.losses).toEqual({ "closed with 4503": 1, ended: 1 });
});

// The peers' wires carry the same token: Socket.IO's after its handshake, plain JSON's at once.
test.each([
  ["socketio", (text: string) => `42["token",{"seq":1,"text":"${text}"}]`],
  ["json", (content: string) => JSON.stringify({ id: "1", choices: [{ index: 0, delta: { content }, finish_reason: null }] })],
] as const)("tokens of %s", async (speech, event) => {
  const { port, peers } = await listen(speech, ({ socket }) => {
    if (speech === "socketio") {
      socket.write(frame('0{"sid":"1","pingInterval":25000}'));
      socket.once("data", () => socket.write(frame('40{"sid":"2"}')));
    }
  });
  const load = await start(port, { speech });
  await vi.waitFor(() => expect(peers.map(({ received }) => String(received.at(-1)))).toEqual(["start", "start"]), waitMsMax);
  load.measure();
  await load.report();
  for (const { socket } of peers) socket.write(frame(event(token(25))));
  await load.answered;
  const seen = await reportWhen(load, ({ tokens }) => tokens === 2);
  expect(seen).toMatchObject({ open: 2, lost: 0, unstamped: 0, latencyMs: { count: 2 } });
  expect(seen.latencyMs.p50).toBeGreaterThanOrEqual(25);
  if (speech === "socketio") peers[0]?.socket.write(frame("2"));
  if (speech === "socketio") await vi.waitFor(() => expect(String(peers[0]?.received.at(-1))).toBe("3"), waitMsMax);
});
