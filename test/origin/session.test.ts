/** The session's contract over a fake socket and over uWebSockets.js, and what only a fake clock can show. */
import * as fc from "fast-check";
import { expect, test } from "vitest";
import { Origin } from "../../origin/origin.js";
import { Session, type SessionSocket } from "../../origin/session.js";
import { SimulatedInference, type SimulatedOptions, simulatedVocabulary } from "../../origin/simulated.js";
import { encode } from "../../shared/codec.js";
import { closeCodeOf, errorTable, MillraceError } from "../../shared/errors.js";
import { limits } from "../../shared/limits.js";
import { Op } from "../../shared/protocol.js";
import { type Carrier, sessionContract } from "./sessionContract.js";
import { claims, edge, originName, SocketClient, sign, simulatedResponses, TestClient } from "./support.js";

/** A session and its client, joined without a socket. Bytes are spoilt after the callback, as uWebSockets.js does. */
class FakeClient extends TestClient {
  session!: Session;
  /** What `send` answers. */
  takes = true;
  readonly socket: SessionSocket = {
    send: (bytes) => {
      if (this.takes) this.arrive(bytes);
      return this.takes;
    },
    close: (code, reason, last) => {
      if (last) this.arrive(last);
      this.finish({ code, reason });
      this.session.closed();
    },
  };

  override sendRaw(bytes: Uint8Array | string): void {
    const copy = typeof bytes === "string" ? new TextEncoder().encode(bytes) : Uint8Array.from(bytes);
    this.session.receive(copy, typeof bytes !== "string");
    copy.fill(0xc1);
  }

  override disconnect(): void {
    this.session.closed();
  }
}

const info = { epoch: "epoch-test", engine: "simulated", model: "simulated", contextTokens: 2_048 } as const;

function openFake(parts: ReturnType<typeof simulatedResponses>, streamLimits = {}, now?: () => number): FakeClient {
  const client = new FakeClient();
  const limits = { ...claims().limits, ...streamLimits };
  client.session = new Session(client.socket, claims({ limits }), parts.responses, info, now);
  client.session.open();
  return client;
}

sessionContract("a session over a fake socket", async (options = {}, drainMs = 5_000): Promise<Carrier> => {
  const parts = simulatedResponses(options);
  const sessions: Session[] = [];
  return {
    connect: async (streamLimits) => {
      const client = openFake(parts, streamLimits);
      sessions.push(client.session);
      return client;
    },
    load: () => parts.inference.load(),
    drain: async () => {
      const drained = parts.responses.drain(drainMs);
      for (const session of sessions) session.drain();
      await drained;
    },
    close: () => parts.inference.close(),
  };
});

sessionContract("a session over uWebSockets.js", async (options = {}, drainMs = 5_000): Promise<Carrier> => {
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
    connect: async (streamLimits) => {
      const limits = { ...claims().limits, ...streamLimits };
      const client = await SocketClient.connect(origin.port, await sign(claims({ limits })));
      clients.push(client);
      return client;
    },
    load: () => inference.load(),
    drain: () => origin.drain(),
    close: async () => {
      for (const client of clients) client.disconnect();
      await origin.drain();
    },
  };
});

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

// A client that reads too slowly loses its connection with a reason, never a frame in the middle, and its slots are freed.
test("an outbox that takes no more ends the connection", async () => {
  const parts = simulatedResponses({ answerTokens: 100_000, contextTokens: 200_000 });
  const client = openFake(parts, { tokensMax: 200_000 });
  client.send([Op.START, 1, [["user", "hello"]], {}]);
  await client.nextOf(Op.TOKENS, 1);
  client.takes = false;
  expect(await client.end()).toMatchObject({ code: "outbox_overflow", close: { code: 4503, reason: "outbox_overflow" } });
  expect(parts.inference.load()).toMatchObject({ running: 0, waiting: 0 });
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
      if (op === Op.TOKENS || op === Op.STARTED || op === Op.QUEUED) expect(over).not.toContain(number);
      if (op === Op.DONE || op === Op.ERROR) over.add(number);
    }
    client.disconnect();
  });
  await fc.assert(property, { numRuns: 300 });
});
