import { setTimeout as deadline } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { WebSocket } from "ws";
import type { Connection, StreamOwner } from "../../client/connection.js";
import { type ConnectOptions, connect } from "../../client/dial.js";
import type { MillraceError } from "../../shared/errors.js";
import { limits } from "../../shared/limits.js";
import { Op, type ServerMessage } from "../../shared/protocol.js";
import { hello, type Script, ScriptedEdge } from "../support/scriptedEdge.js";

let edge: ScriptedEdge | undefined;
let connection: Connection | undefined;

afterEach(async () => {
  connection?.close();
  await edge?.stop();
  edge = connection = undefined;
});

async function open(script: Script = {}, options: Partial<ConnectOptions> = {}): Promise<Connection> {
  edge = await ScriptedEdge.start(script);
  connection = await connect({ edge: edge.url, WebSocket, ...options });
  return connection;
}

/** A script that runs `act` for each START. */
function onStart(act: NonNullable<Script["onMessage"]>): Script {
  return {
    onMessage: (peer, message) => {
      if (message[0] === Op.START) act(peer, message);
    },
  };
}

/** A stream, and all that came of it. */
class Listener implements StreamOwner {
  readonly heard: ServerMessage[] = [];
  reason: MillraceError | undefined;
  readonly stream: number;
  #waiting: (() => void)[] = [];

  constructor(on: Connection, content = "Why is the sky blue?") {
    this.stream = on.join(this, (stream) => [Op.START, stream, [["user", content]], {}]);
  }

  hear(message: ServerMessage): void {
    this.heard.push(message);
    this.#wake();
  }

  broken(reason: MillraceError): void {
    this.reason = reason;
    this.#wake();
  }

  get text(): string {
    return this.heard.map((message) => (message[0] === Op.TOKENS ? message[3] : "")).join("");
  }

  /** Resolves once a message of this op has come, or none will. */
  async until(op: number): Promise<void> {
    while (!this.reason && !this.heard.some((message) => message[0] === op))
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

// The way everything usually goes: ticket, HELLO, START, tokens, DONE.
test("an answer arrives over a real socket", async () => {
  const live = await open(onStart((peer, [, stream]) => peer.answer(stream, ["Light ", "scatters."])));
  expect(live.hello).toEqual(hello);
  const listener = new Listener(live);
  await listener.until(Op.DONE);
  expect(listener.heard.map(([op]) => op)).toEqual([Op.STARTED, Op.TOKENS, Op.TOKENS, Op.DONE]);
  expect(listener.text).toBe("Light scatters.");
  expect(edge?.peer.protocols).toEqual(["millrace.v1", "ticket.scripted"]);
  expect([live.running, live.used]).toEqual([0, 1]);
});

// Many answers share a socket and never mix, however their frames interleave.
test("streams do not mix", async () => {
  const live = await open(
    onStart((peer, [, stream]) => {
      if (stream !== 3) return;
      for (const seq of [1, 2]) for (const each of [3, 1, 2]) peer.tokens(each, [`${each}.${seq} `], seq);
      for (const each of [2, 3, 1]) peer.done(each, [`${each}.1 `, `${each}.2 `]);
    }),
  );
  const listeners = [1, 2, 3].map(() => new Listener(live));
  await Promise.all(listeners.map((listener) => listener.until(Op.DONE)));
  expect(listeners.map(({ text }) => text)).toEqual(["1.1 1.2 ", "2.1 2.2 ", "3.1 3.2 "]);
});

// The credential is the session's own token, in the ticket's place, and no ticket is asked for.
test("a session comes back by its token, here or elsewhere", async () => {
  edge = await ScriptedEdge.start({ onTicket: () => expect.fail("a ticket was asked for") });
  const resume = { url: `ws://127.0.0.1:${edge.port}/v1/stream`, token: "abc" };
  for (const elsewhere of [false, true]) {
    connection = await connect({ edge: edge.url, WebSocket, resume, elsewhere });
    connection.close();
  }
  expect(edge.peers.map(({ protocols }) => protocols)).toEqual([
    ["millrace.v1", "resume.abc"],
    ["millrace.v1", "resume.abc", "elsewhere"],
  ]);
});

test("a ticket may come from the customer's own backend", async () => {
  edge = await ScriptedEdge.start({ onTicket: () => expect.fail("the edge was asked for a ticket") });
  const url = `ws://127.0.0.1:${edge.port}/v1/stream`;
  connection = await connect({ edge: edge.url, WebSocket, fetchTicket: () => Promise.resolve({ ticket: "theirs", expiresAt: 1, url }) });
  expect(edge.peer.protocols).toEqual(["millrace.v1", "ticket.theirs"]);
});

// The origin's PING is answered in the message handler, so a page in the background stays connected.
test("PING is answered with its nonce", async () => {
  await open();
  edge?.peer.send([Op.PING, 0, 77]);
  expect(await edge?.peer.next(Op.PONG)).toEqual([Op.PONG, 0, 77]);
});

// What ends is the connection alone; what becomes of its answers is for others to say.
test("a socket that dies mid-answer", async () => {
  const live = await open(
    onStart((peer, [, stream]) => {
      peer.tokens(stream, ["half an "]);
      peer.socket.terminate();
    }),
  );
  const listener = new Listener(live);
  expect(await live.closed).toMatchObject({
    code: "connection_lost",
    message: expect.stringMatching(/while an answer was arriving.*1006/),
  });
  expect([listener.text, listener.reason]).toEqual(["half an ", undefined]);
  expect(live.wasUseful).toBe(true);
  expect(() => new Listener(live)).toThrow("the connection broke");
});

// A START that the origin would have to cut off is refused here, and the connection lives on.
test("an oversize START is refused before it is sent", async () => {
  const live = await open({
    ...onStart((peer, [, stream]) => peer.answer(stream, ["fine"])),
    onOpen: (peer) => peer.hello({ frameBytesMax: 500 }),
  });
  for (const size of [500, limits.frameBytesMax])
    expect(() => new Listener(live, "x".repeat(size))).toThrow(
      expect.objectContaining({ code: "frame_too_large", message: expect.stringContaining("shorten the conversation") }),
    );
  await new Listener(live).until(Op.DONE);
  expect(edge?.peer.received.map(([op, stream]) => [op, stream])).toEqual([[Op.START, 3]]);
});

// An origin that accepts the socket and says nothing is given up; that it was reached is known.
test("a missing HELLO is a timeout", async () => {
  let dialed: Connection | undefined;
  const onDial = (made: Connection): void => {
    dialed = made;
  };
  const opening = open({ onOpen: () => {} }, { openMs: 200, onDial });
  await expect(opening).rejects.toMatchObject({ code: "connection_timeout", message: "the connection did not open within 200 ms" });
  expect(dialed?.wasReached).toBe(true);
});

// A socket that falls silent for three PINGs is dead, even where no close ever comes.
test("silence ends the connection", async () => {
  const live = await open({ onOpen: (peer) => peer.hello({ pingEveryMs: 0 }) });
  expect(await live.closed).toMatchObject({ code: "connection_lost", message: expect.stringContaining("nothing was heard") });
});

// How the edge refuses a browser: it accepts, says ERROR for the connection, and closes.
test("a refusal before HELLO reaches the caller", async () => {
  const opening = open({ onOpen: (peer) => peer.refuse("ticket_expired", "the ticket is 75 s old") });
  await expect(opening).rejects.toMatchObject({ code: "ticket_expired", message: "the ticket is 75 s old", retry: "ticket" });
});

test("an attempt that was given up leaves no socket behind", async () => {
  const attempt = new AbortController();
  const opening = open({ onOpen: () => attempt.abort() }, { signal: attempt.signal });
  await expect(opening).rejects.toMatchObject({ code: "closed_by_caller" });
});

test("an ERROR of the connection ends it, with when to come again", async () => {
  const live = await open(onStart((peer) => peer.refuse("draining", "the origin is stopping", 2_000)));
  new Listener(live);
  expect(await live.closed).toMatchObject({ code: "draining", retryAfterMs: 2_000 });
});

// GOAWAY is told once, and nothing ends by it.
test("GOAWAY is told", async () => {
  const reasons: string[] = [];
  const live = await open(
    onStart((peer, [, stream]) => {
      for (const reason of ["session_expired", "draining"] as const) peer.send([Op.GOAWAY, 0, 1_000, reason]);
      peer.answer(stream, ["still here"]);
    }),
  );
  live.onGoaway = (reason) => reasons.push(reason);
  const listener = new Listener(live);
  await listener.until(Op.DONE);
  expect([reasons, live.goaway, listener.text]).toEqual([["session_expired"], "session_expired", "still here"]);
});

// An answer may be truncated after its end, and is told so on the same stream.
test("what follows a stream's last message finds its owner", async () => {
  const live = await open(
    onStart((peer, [, stream]) => {
      peer.answer(stream, ["all of it"]);
      peer.send([Op.TRUNCATED, stream, 1, 3]);
    }),
  );
  const listener = new Listener(live);
  await listener.until(Op.TRUNCATED);
  expect(live.running).toBe(0);
});

// What cannot be read ends what it belongs to: one stream, or the connection where it belongs to none.
test.each([
  ["garbage", Uint8Array.of(0xc1, 0xff), "frame_malformed"],
  ["a text message", "hello", "frame_not_binary"],
  ["tokens before HELLO", undefined, "frame_malformed"],
] as const)("%s ends the connection", async (_, bytes, code) => {
  if (bytes === undefined) {
    const opening = open({ onOpen: (peer) => peer.tokens(1, ["too early"]) });
    await expect(opening).rejects.toMatchObject({ code });
    return;
  }
  const live = await open(onStart((peer) => peer.raw(bytes)));
  new Listener(live);
  expect(await live.closed).toMatchObject({ code });
});

test("a bad field breaks its stream alone", async () => {
  const badTokens = Uint8Array.of(0x95, Op.TOKENS, 1, 0, 0xa1, 0x61, 0); // seq 0
  const live = await open(onStart((peer, [, stream]) => (stream === 1 ? peer.raw(badTokens) : peer.answer(stream, ["ok"]))));
  const broken = new Listener(live);
  await broken.until(Op.DONE);
  expect(broken.reason).toMatchObject({ code: "field_invalid" });
  const fine = new Listener(live);
  await fine.until(Op.DONE);
  expect([fine.text, live.running]).toEqual(["ok", 0]);
});

// A later version's messages pass without harm.
test("unknown ops and further elements are ignored", async () => {
  const live = await open(
    onStart((peer, [, stream]) => {
      peer.raw(Uint8Array.of(0x92, 31, 0));
      peer.raw(Uint8Array.of(0x97, Op.TOKENS, stream, 1, 0xa1, 0x61, 0, 0x91, 5, 7)); // with token ids and one element more
      peer.done(stream, ["a"]);
    }),
  );
  const listener = new Listener(live);
  await listener.until(Op.DONE);
  expect(listener.heard[0]).toEqual([Op.TOKENS, 1, 1, "a", 0, [5]]);
});

test("closing is told, and who closed", async () => {
  const live = await open();
  live.close();
  expect(await Promise.race([live.closed, deadline(1_000)])).toMatchObject({ code: "closed_by_caller" });
});
