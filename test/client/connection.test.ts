import { setTimeout as deadline } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { WebSocket } from "ws";
import { type Connection, type ConnectOptions, connect } from "../../client/connection.js";
import type { MillraceError } from "../../shared/errors.js";
import { limits } from "../../shared/limits.js";
import { Op } from "../../shared/protocol.js";
import { hello, type Script, ScriptedEdge } from "../support/scriptedEdge.js";

const question = [{ role: "user", content: "Why is the sky blue?" }] as const;
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

// The way everything usually goes: ticket, HELLO, START, tokens, DONE.
test("an answer arrives over a real socket", async () => {
  const live = await open(onStart((peer, [, stream]) => peer.answer(stream, ["Light ", "scatters."])));
  expect(live.hello).toEqual(hello);
  const response = live.start(question, { maxTokens: 9 });
  let text = "";
  for await (const delta of response) text += delta;
  expect(text).toBe("Light scatters.");
  expect(response.usage).toEqual({ promptTokens: 12, cachedTokens: 4, completionTokens: 2 });
  expect(edge?.peer.received).toEqual([[Op.START, 1, [["user", "Why is the sky blue?"]], { maxTokens: 9 }]]);
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
  const responses = [1, 2, 3].map(() => live.start(question));
  await Promise.all(responses.map((response) => response.done));
  expect(responses.map((response) => response.text)).toEqual(["1.1 1.2 ", "2.1 2.2 ", "3.1 3.2 "]);
});

// The origin's PING is answered in the message handler, so a page in the background stays connected.
test("PING is answered with its nonce", async () => {
  await open();
  edge?.peer.send([Op.PING, 0, 77]);
  expect(await edge?.peer.next(Op.PONG)).toEqual([Op.PONG, 0, 77]);
});

test("cancel is sent once, and DONE says cancelled", async () => {
  const live = await open({
    onMessage: (peer, [op, stream]) => {
      if (op === Op.START) peer.tokens(stream, ["one "]);
      if (op === Op.CANCEL) peer.done(stream, ["one "], "cancelled");
    },
  });
  const response = live.start(question);
  for await (const _ of response) response.cancel();
  expect((await response.done).reason).toBe("cancelled");
  expect(edge?.peer.received.filter(([op]) => op === Op.CANCEL)).toEqual([[Op.CANCEL, 1]]);
});

// A socket that dies mid-answer fails every answer on it with one sentence, and keeps what was shown.
test("a socket that dies mid-answer", async () => {
  const live = await open(
    onStart((peer, [, stream]) => {
      peer.tokens(stream, ["half an "]);
      if (stream === 2) peer.socket.terminate();
    }),
  );
  const [first, second] = [live.start(question), live.start(question)];
  await expect(first.done).rejects.toMatchObject({
    code: "connection_lost",
    message: expect.stringContaining("while the answer was arriving"),
  });
  await expect(second.done).rejects.toMatchObject({ code: "connection_lost", message: expect.stringContaining("1006") });
  expect([first.text, second.text]).toEqual(["half an ", "half an "]);
  expect(live.ended).toMatchObject({ code: "connection_lost" });
  await expect(live.start(question).done).rejects.toMatchObject({ code: "connection_lost" });
});

// A START that the origin would have to cut off is refused here, and the connection lives on.
test("an oversize START is refused before it is sent", async () => {
  const live = await open({
    ...onStart((peer, [, stream]) => peer.answer(stream, ["fine"])),
    onOpen: (peer) => peer.send([Op.HELLO, 0, { ...hello, frameBytesMax: 500 }]),
  });
  for (const size of [500, limits.frameBytesMax]) {
    const refused = live.start([{ role: "user", content: "x".repeat(size) }]);
    await expect(refused.done).rejects.toMatchObject({
      code: "frame_too_large",
      message: expect.stringContaining("shorten the conversation"),
    });
  }
  await live.start(question).done;
  expect(edge?.peer.received.map(([op, stream]) => [op, stream])).toEqual([[Op.START, 3]]);
});

// An origin that accepts the socket and says nothing is given up.
test("a missing HELLO is a timeout", async () => {
  const opening = open({ onOpen: () => {} }, { openMs: 50 });
  await expect(opening).rejects.toMatchObject({ code: "connection_timeout", message: "the connection did not open within 50 ms" });
});

// A socket that falls silent for three PINGs is dead, even where no close ever comes.
test("silence ends the connection", async () => {
  const live = await open({ onOpen: (peer) => peer.send([Op.HELLO, 0, { ...hello, pingEveryMs: 0 }]) });
  const response = live.start(question);
  await expect(response.done).rejects.toMatchObject({ code: "connection_lost", message: expect.stringContaining("nothing was heard") });
});

// How the edge refuses a browser: it accepts, says ERROR for the connection, and closes.
test("a refusal before HELLO reaches the caller", async () => {
  const opening = open({
    onOpen: (peer) => {
      peer.send([Op.ERROR, 0, "ticket_expired", "the ticket is 75 s old", 0]);
      peer.socket.close(4401);
    },
  });
  await expect(opening).rejects.toMatchObject({ code: "ticket_expired", message: "the ticket is 75 s old", retry: "ticket" });
});

test("an ERROR of one stream leaves the others alone", async () => {
  const live = await open(
    onStart((peer, [, stream]) => {
      if (stream === 1) peer.send([Op.ERROR, 1, "context_exceeded", "9000 tokens over 2048", 0]);
      else peer.answer(stream, ["still here"]);
    }),
  );
  const [refused, fine] = [live.start(question), live.start(question)];
  await expect(refused.done).rejects.toMatchObject({ code: "context_exceeded" });
  await fine.done;
  expect(fine.text).toBe("still here");
});

test("an ERROR of the connection ends every stream", async () => {
  const live = await open(onStart((peer) => peer.send([Op.ERROR, 0, "draining", "the origin is stopping", 2_000])));
  const response = live.start(question);
  await expect(response.done).rejects.toMatchObject({ code: "draining", retryAfterMs: 2_000 });
  expect(await live.closed).toBe(response.error as MillraceError);
});

// What cannot be read ends what it belongs to: one stream, or the connection where it belongs to none.
test.each([
  ["garbage", Uint8Array.of(0xc1, 0xff), "frame_malformed"],
  ["a text message", "hello", "frame_not_binary"],
] as const)("%s ends the connection", async (_, bytes, code) => {
  const live = await open(onStart((peer) => peer.raw(bytes)));
  await expect(live.start(question).done).rejects.toMatchObject({ code });
});

test("a bad field ends its stream and frees its slot", async () => {
  const badTokens = Uint8Array.of(0x95, Op.TOKENS, 1, 0, 0xa1, 0x61, 0); // seq 0
  const live = await open(onStart((peer, [, stream]) => (stream === 1 ? peer.raw(badTokens) : peer.answer(stream, ["ok"]))));
  await expect(live.start(question).done).rejects.toMatchObject({ code: "field_invalid" });
  expect(await edge?.peer.next(Op.CANCEL)).toEqual([Op.CANCEL, 1]);
  await live.start(question).done;
});

// A later version's messages pass without harm.
test("unknown ops and further elements are ignored", async () => {
  const live = await open(
    onStart((peer, [, stream]) => {
      peer.raw(Uint8Array.of(0x92, 13, 0)); // GOAWAY
      peer.raw(Uint8Array.of(0x96, Op.TOKENS, stream, 1, 0xa1, 0x61, 0, 0x91, 5)); // with token ids
      peer.done(stream, ["a"]);
    }),
  );
  const response = live.start(question);
  await response.done;
  expect(response.text).toBe("a");
});

test("closing ends running answers, and says who closed", async () => {
  const live = await open(onStart((peer, [, stream]) => peer.tokens(stream, ["text "])));
  const response = live.start(question);
  for await (const _ of response) {
    live.close();
    break;
  }
  await expect(response.done).rejects.toMatchObject({ code: "closed_by_caller" });
  const closed = await Promise.race([live.closed, deadline(1_000)]);
  expect(closed).toMatchObject({ code: "closed_by_caller" });
});
