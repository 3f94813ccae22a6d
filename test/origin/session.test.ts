/** The session's contract over a fake socket and over uWebSockets.js, and what only a fake clock can show. */
import * as fc from "fast-check";
import { expect, test } from "vitest";
import { Origin } from "../../origin/origin.js";
import type { Session } from "../../origin/session.js";
import { SimulatedInference, type SimulatedOptions, simulatedVocabulary } from "../../origin/simulated.js";
import { encode } from "../../shared/codec.js";
import { closeCodeOf, errorTable, MillraceError } from "../../shared/errors.js";
import { limits } from "../../shared/limits.js";
import { Op, type Tokens } from "../../shared/protocol.js";
import { type FakeClient, openFake } from "./fakeClient.js";
import { resumeContract } from "./resumeContract.js";
import { type Carrier, sessionContract } from "./sessionContract.js";
import { claims, edge, epoch, originName, readAnswer, SocketClient, sign, simulatedResponses, type TestClient } from "./support.js";

async function overFakes(options: Partial<SimulatedOptions> = {}, drainMs = 5_000): Promise<Carrier> {
  const parts = simulatedResponses(options);
  const sessions: Session[] = [];
  return {
    connect: async (streamLimits, changes) => {
      const client = openFake(parts, streamLimits, undefined, changes);
      sessions.push(client.session);
      return client;
    },
    tick: () => parts.responses.tick(),
    load: () => parts.inference.load(),
    drain: async () => {
      const drained = parts.responses.drain(drainMs);
      for (const session of sessions) session.goAway("draining", drainMs);
      await drained;
    },
    close: () => parts.inference.close(),
  };
}

async function overSockets(options: Partial<SimulatedOptions> = {}, drainMs = 5_000): Promise<Carrier> {
  const all: SimulatedOptions = { tokensPerSecond: 2_000, answerTokens: 40, slots: 8, contextTokens: 2_048, ...options };
  const inference = new SimulatedInference(all);
  const load = async () => ({ inference, vocabulary: simulatedVocabulary() });
  const origin = await Origin.listen({
    host: "127.0.0.1",
    port: 0,
    name: originName,
    edgeKey: edge.publicKey,
    drainMs,
    load,
    log: () => {},
  });
  await origin.load();
  const clients: TestClient[] = [];
  return {
    connect: async (streamLimits, changes = {}) => {
      const limits = { ...claims().limits, ...streamLimits };
      const client = await SocketClient.connect(origin.port, await sign(claims({ limits, ...changes })));
      clients.push(client);
      return client;
    },
    tick: () => {},
    load: () => inference.load(),
    drain: () => origin.drain(),
    close: async () => {
      for (const client of clients) client.disconnect();
      await origin.drain();
    },
  };
}

sessionContract("a session over a fake socket", overFakes);
sessionContract("a session over uWebSockets.js", overSockets);
resumeContract("resuming over a fake socket", overFakes);
resumeContract("resuming over uWebSockets.js", overSockets);

// A silent origin asks whether the client lives; any message counts as an answer, and two unanswered end the connection.
test("PING after silence, and the end after two misses", () => {
  let now = 0;
  const client = openFake(simulatedResponses(), {}, () => now);
  const pings = (): number => client.received.filter(([op]) => op === Op.PING).length;
  const pass = (ms: number): void => {
    now += ms;
    client.session.tick();
  };
  pass(limits.pingEveryMs - 1);
  expect(pings()).toBe(0);
  pass(1);
  expect(pings()).toBe(1);
  client.send([Op.PONG, 0, 0]);
  pass(limits.pingEveryMs);
  pass(limits.pingEveryMs);
  expect(pings()).toBe(3);
  pass(limits.pingEveryMs);
  expect(pings()).toBe(3);
  return expect(client.closed).resolves.toEqual({ code: 4504, reason: "connection_timeout" });
});

// A client that reads slowly has its tokens wait in the log, where they cost nothing more; once it reads, it has them all in few messages.
test("a full socket gets what has gathered once it drains", async () => {
  const parts = simulatedResponses({ answerTokens: 400, tokensPerSecond: 20_000 });
  const client = openFake(parts);
  client.send([Op.START, 1, [["user", "hello"]], {}]);
  await client.nextOf(Op.TOKENS, 1);
  client.isFull = true;
  const other = openFake(parts);
  other.send([Op.START, 1, [["user", "hello"]], {}]);
  const whole = await readAnswer(other, 1);
  const before = client.received.length;
  client.isFull = false;
  client.session.drained();
  await client.nextOf(Op.DONE, 1);
  expect(textOf(client)).toBe(whole.text);
  expect(client.received.length - before).toBeLessThan(30);
});

/** What the client has read of stream 1. */
function textOf(client: FakeClient): string {
  const read = client.received.filter((message) => message[0] === Op.TOKENS && message[1] === 1) as Tokens[];
  return read.map(([, , , text]) => text).join("");
}

// What a socket has to hold nonetheless is bounded: where it takes no more, it ends with a reason, and its answers go on.
test("an outbox that takes no more ends the connection", async () => {
  const parts = simulatedResponses({ answerTokens: 100_000, contextTokens: 200_000 });
  const client = openFake(parts, { tokensMax: 200_000 });
  client.send([Op.START, 1, [["user", "hello"]], {}]);
  await client.nextOf(Op.TOKENS, 1);
  client.takes = false;
  expect(await client.end()).toMatchObject({ code: "outbox_overflow", close: { code: 4503, reason: "outbox_overflow" } });
  expect(parts.inference.load()).toMatchObject({ running: 1 });
});

// A session has the time that its edge gave it, by the edge's clock alone; shortly before the end it is told.
test("a session that grows old is told to go, and ends", async () => {
  let now = 0;
  const at = { iat: 1_000_000, exp: 1_000_010, sessionExp: 1_000_000 + 100 };
  const client = openFake(simulatedResponses(), {}, () => now, at);
  now = 69_000;
  client.session.tick();
  expect(client.received.map(([op]) => op)).not.toContain(Op.GOAWAY);
  now = 71_000;
  client.session.tick();
  expect(client.received.at(-1)).toEqual([Op.GOAWAY, 0, 29_000, "session_expired"]);
  now = 74_000;
  client.session.tick();
  expect(await client.end()).toMatchObject({ code: "session_expired", close: { code: 4401 } });
});

// The longest sentence that is sent fits the protocol's bound, cut at a whole code point.
test("an error's sentence is cut at its bound", async () => {
  const build = () => Promise.reject(new MillraceError("field_invalid", `a${"\u{1f30a}".repeat(400)}`));
  const parts = simulatedResponses({}, { build });
  const client = openFake(parts);
  client.send([Op.START, 1, [["user", "hello"]], {}]);
  const [, , , message] = await client.nextOf(Op.ERROR, 1);
  expect(message).toBe(`a${"\u{1f30a}".repeat(255)}`);
});

const closeCodes = new Set((Object.keys(errorTable) as (keyof typeof errorTable)[]).map(closeCodeOf));
const streamNumber = fc.oneof(fc.integer({ min: 0, max: 3 }), fc.anything());
const frame = fc.oneof(
  fc.uint8Array({ maxLength: 200 }),
  fc.string({ maxLength: 20 }),
  fc.tuple(fc.constantFrom(32, 33, 34, 1, 99), streamNumber, fc.anything(), fc.anything()).map(packed),
  fc
    .record({
      stream: fc.integer({ min: 1, max: 4 }),
      content: fc.string({ unit: "binary", maxLength: 30 }),
      options: fc.dictionary(fc.string(), fc.anything()),
    })
    .map(({ stream, content, options }) => packed([Op.START, stream, [["user", content]], options])),
  fc.integer({ min: 1, max: 4 }).map((stream) => packed([Op.START, stream, [["user", "hi"]], { maxTokens: 3 }])),
  fc.integer({ min: 1, max: 4 }).map((stream) => packed([Op.CANCEL, stream])),
  fc.integer({ min: 1, max: 4 }).map((stream) => packed([Op.START, stream, [["user", "hi"]], { key: "k", creditSeq: 1, maxTokens: 3 }])),
  fc.tuple(fc.constantFrom(Op.CREDIT, Op.TRUNCATE), fc.integer({ min: 1, max: 4 }), fc.nat(9)).map(packed),
  fc
    .tuple(fc.integer({ min: 1, max: 6 }), fc.constantFrom(epoch, "other"), fc.nat(5))
    .map(([stream, run, seq]) => packed([Op.RESUME, stream, run, "no such response", seq, 9])),
);

/** Anything as a frame; what MessagePack cannot carry is sent as an empty one. */
function packed(value: unknown): Uint8Array {
  try {
    return Uint8Array.from(encode(value as Parameters<typeof encode>[0]));
  } catch {
    return new Uint8Array();
  }
}

// Whatever comes in, a session either lives, and then still answers, or is closed with a code of the table; and no stream is answered
// after its last message.
test("random frames leave a session alive or closed with a table code", async () => {
  const parts = simulatedResponses({ tokensPerSecond: 50_000 });
  let next = 1_000;
  const property = fc.asyncProperty(fc.array(frame, { maxLength: 12 }), async (frames) => {
    const client = openFake(parts);
    let closing: { code: number } | undefined;
    void client.closed.then((end) => {
      closing = end;
    });
    for (const bytes of frames) client.sendRaw(bytes);
    const stream = next++;
    client.send([Op.START, stream, [["user", "still there?"]], { maxTokens: 2 }]);
    await Promise.race([client.closed, client.nextOf(Op.DONE, stream).catch(() => {})]);
    await Promise.resolve();
    if (closing) expect(closeCodes).toContain(closing.code);
    else expect(client.received.at(-1)?.[0]).toBeDefined();
    const over = new Set<number>();
    for (const [op, number] of client.received) {
      if (op === Op.TOKENS || op === Op.STARTED || op === Op.RESUMED || op === Op.QUEUED) expect(over).not.toContain(number);
      if (op === Op.DONE || op === Op.ERROR || op === Op.EXPIRED || op === Op.MISROUTED) over.add(number);
    }
    client.disconnect();
  });
  await fc.assert(property, { numRuns: 300 });
});
