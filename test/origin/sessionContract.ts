/** What a client sees of a session, over whatever carries it. Each test is a transcript: what is sent, and what is answered. */
import { afterEach, describe, expect, test } from "vitest";
import type { SimulatedOptions } from "../../origin/simulated.js";
import type { AssertionClaims, SessionLimits } from "../../shared/assertion.js";
import { encode } from "../../shared/codec.js";
import { type ChatMessage, Op } from "../../shared/protocol.js";
import { readAnswer, type TestClient } from "./support.js";

export interface Carrier {
  /** @param changes to the edge's word on who comes. */
  connect(limits?: Partial<SessionLimits>, changes?: Partial<AssertionClaims>): Promise<TestClient>;
  /** Lets the origin's clock tick, where it does not by itself. */
  tick(): void;
  /** Answers that hold a slot or wait for one. */
  load(): { running: number; waiting: number };
  drain(): Promise<void>;
  close(): Promise<void>;
}

const ask: ChatMessage[] = [["user", "How does a mill race work?"]];

export function sessionContract(name: string, open: (options?: Partial<SimulatedOptions>, drainMs?: number) => Promise<Carrier>): void {
  describe(name, () => {
    let carrier: Carrier;
    afterEach(() => carrier.close());

    /** A connection that has said HELLO. */
    const greeted = async (options: Partial<SimulatedOptions> = {}, limits: Partial<SessionLimits> = {}): Promise<TestClient> => {
      carrier = await open(options);
      const client = await carrier.connect(limits);
      await client.nextOf(Op.HELLO);
      return client;
    };

    // The first message says what the origin is and what it allows; a simulated one says so.
    test("HELLO comes first", async () => {
      carrier = await open();
      const client = await carrier.connect({ streamsMax: 7 });
      const [op, stream, info] = await client.nextOf(Op.HELLO);
      expect([op, stream]).toEqual([Op.HELLO, 0]);
      expect(info).toMatchObject({
        engine: "simulated",
        model: "simulated",
        contextTokens: 2_048,
        frameBytesMax: 1_048_576,
        streamsMax: 7,
      });
      expect(info.epoch).toMatch(/^[\w-]{8,}$/);
      expect(client.received).toHaveLength(1);
    });

    // One answer, as the protocol lays it out: STARTED, TOKENS with growing seq, DONE whose digest is that of the text.
    test("START is answered by STARTED, TOKENS and DONE", async () => {
      const client = await greeted({ answerTokens: 40 });
      client.send([Op.START, 1, ask, {}]);
      const [, , response, promptTokens, dropped] = await client.nextOf(Op.STARTED, 1);
      expect(response.length).toBeGreaterThan(0);
      expect(dropped).toBe(0);
      const answer = await readAnswer(client, 1);
      expect(answer).toMatchObject({ seq: 40, reason: "stop", promptTokens });
      expect(answer.text.length).toBeGreaterThan(40);
      expect(client.received.map(([op]) => op).filter((op) => op !== Op.TOKENS)).toEqual([Op.HELLO, Op.STARTED, Op.DONE]);
    });

    // The token limit is kept to the token, and said.
    test("maxTokens ends an answer with length", async () => {
      const client = await greeted();
      client.send([Op.START, 1, ask, { maxTokens: 5 }]);
      expect(await readAnswer(client, 1)).toMatchObject({ seq: 5, reason: "length" });
    });

    // A stop string is not part of the answer, and nothing of it is shown before it is known to be none.
    test("a stop string ends the answer before it", async () => {
      const client = await greeted({ answerTokens: 200 });
      client.send([Op.START, 1, ask, {}]);
      const whole = (await readAnswer(client, 1)).text;
      const stop = whole.slice(60, 70);
      client.send([Op.START, 2, ask, { stop: [stop] }]);
      expect(await readAnswer(client, 2)).toMatchObject({ text: whole.slice(0, whole.indexOf(stop)), reason: "stop" });
    });

    // Many answers share one connection, each with its own text.
    test("streams of one connection do not mix", async () => {
      const client = await greeted();
      const prompts = ["one", "two", "three"];
      for (const [index, prompt] of prompts.entries()) client.send([Op.START, index + 1, [["user", prompt]], {}]);
      const texts = new Map<number, string>();
      let done = 0;
      while (done < prompts.length) {
        const message = await client.next();
        if (message[0] === Op.TOKENS) texts.set(message[1], (texts.get(message[1]) ?? "") + message[3]);
        if (message[0] === Op.DONE) done++;
      }
      expect(new Set(texts.values()).size).toBe(3);
      client.send([Op.START, 4, [["user", "two"]], {}]);
      expect((await readAnswer(client, 4)).text).toBe(texts.get(2));
    });

    // CANCEL is acknowledged once, no token follows it, and its slot goes to who waits.
    test("CANCEL mid-answer frees the slot for the next", async () => {
      const client = await greeted({ slots: 1, answerTokens: 100_000, contextTokens: 200_000 }, { tokensMax: 200_000 });
      client.send([Op.START, 1, ask, {}]);
      await client.nextOf(Op.TOKENS, 1);
      client.send([Op.START, 2, [["user", "and I?"]], { maxTokens: 3 }]);
      expect((await client.nextOf(Op.QUEUED, 2))[2]).toBe(1);
      client.send([Op.CANCEL, 1]);
      const [, , seq, reason] = await client.nextOf(Op.DONE, 1);
      expect(reason).toBe("cancelled");
      expect(seq).toBeGreaterThan(0);
      const at = client.received.length;
      expect(await readAnswer(client, 2)).toMatchObject({ seq: 3 });
      expect(client.received.slice(at).filter((message) => message[1] === 1)).toEqual([]);
      expect(carrier.load()).toMatchObject({ running: 0, waiting: 0 });
    });

    // A CANCEL that overtakes the tokenizer is answered all the same, and the engine never hears of the request.
    test("CANCEL before the engine has the request", async () => {
      const client = await greeted();
      client.send([Op.START, 1, ask, {}]);
      client.send([Op.CANCEL, 1]);
      client.send([Op.CANCEL, 1]);
      const [, , seq, reason] = await client.nextOf(Op.DONE, 1);
      expect(reason).toBe("cancelled");
      client.send([Op.START, 2, ask, { maxTokens: 2 }]);
      await readAnswer(client, 2);
      expect(seq).toBe(0);
      // One that comes after the end is answered as the first was.
      client.send([Op.CANCEL, 1]);
      await client.nextOf(Op.DONE, 1);
      const ends = client.received.filter(([op, stream]) => op === Op.DONE && stream === 1);
      for (const end of ends) expect(end).toEqual(ends[0]);
    });

    // A stream that is not running can be cancelled: nothing happens.
    test("CANCEL of an unknown stream is ignored", async () => {
      const client = await greeted();
      client.send([Op.CANCEL, 9]);
      client.send([Op.PONG, 0, 1]);
      client.send([Op.START, 1, ask, { maxTokens: 2 }]);
      expect(await readAnswer(client, 1)).toMatchObject({ seq: 2 });
    });

    // Disconnecting cancels nothing; whom nobody comes back for within the grace is cancelled, and frees what it held.
    test("an answer outlives its socket, for its grace", async () => {
      const leaving = await greeted({ slots: 1, answerTokens: 100_000, contextTokens: 200_000 }, { tokensMax: 200_000 });
      leaving.send([Op.START, 1, ask, { graceMs: 1 }]);
      await leaving.nextOf(Op.TOKENS, 1);
      const staying = await carrier.connect();
      staying.send([Op.START, 1, [["user", "my turn"]], { maxTokens: 4 }]);
      await staying.nextOf(Op.QUEUED, 1);
      expect(carrier.load()).toMatchObject({ running: 1 });
      leaving.disconnect();
      const ticking = setInterval(() => carrier.tick(), 5);
      expect(await readAnswer(staying, 1)).toMatchObject({ seq: 4 });
      clearInterval(ticking);
    });

    // 16 conversations at once: each complete, each with the answer it gets when it is alone.
    test("16 conversations at once", async () => {
      carrier = await open({ slots: 5, answerTokens: 60 });
      const prompts = Array.from({ length: 16 }, (_, index): ChatMessage[] => [["user", `question ${index}`]]);
      const answers = await Promise.all(
        prompts.map(async (messages) => {
          const client = await carrier.connect();
          client.send([Op.START, 1, messages, {}]);
          return readAnswer(client, 1);
        }),
      );
      expect(new Set(answers.map(({ text }) => text)).size).toBe(16);
      const client = await carrier.connect();
      for (const [index, messages] of prompts.entries()) {
        client.send([Op.START, index + 1, messages, {}]);
        expect(await readAnswer(client, index + 1)).toEqual(answers[index]);
      }
    });

    // What does not fit is refused with the numbers, and the connection lives.
    test("a prompt of 100,000 tokens is context_exceeded", async () => {
      const client = await greeted();
      client.send([Op.START, 1, [["user", "x".repeat(100_000)]], { maxTokens: 10 }]);
      const [, , code, message] = await client.nextOf(Op.ERROR, 1);
      expect(code).toBe("context_exceeded");
      expect(message).toMatch(/100,?0\d\d tokens plus maxTokens 10 are 100,?0\d\d, over the context of 2,?048/);
      client.send([Op.START, 2, ask, { maxTokens: 2 }]);
      expect(await readAnswer(client, 2)).toMatchObject({ seq: 2 });
    });

    // Where the client asks for it, old turns go instead, and it is told how many messages went.
    test("overflow drop_oldest leaves out the oldest turns", async () => {
      const client = await greeted();
      const turns = Array.from(
        { length: 30 },
        (_, index): ChatMessage => [index % 2 ? "assistant" : "user", `${index} ${"y".repeat(200)}`],
      );
      const messages: ChatMessage[] = [["system", "Be brief."], ...turns, ["user", "And?"]];
      client.send([Op.START, 1, messages, { maxTokens: 100, overflow: "drop_oldest" }]);
      const [, , , promptTokens, dropped] = await client.nextOf(Op.STARTED, 1);
      expect(dropped).toBeGreaterThan(0);
      expect(dropped % 2).toBe(0);
      expect(promptTokens + 100).toBeLessThanOrEqual(2_048);
      expect(await readAnswer(client, 1)).toMatchObject({ promptTokens });
    });

    // A field that is wrong ends its stream with a sentence that names it; the connection lives on.
    test.each([
      ["an unknown option", { temprature: 1 }, /option "temprature" is unknown; there are maxTokens,/],
      ["an option out of range", { temperature: 11 }, /temperature is 11, not a number from 0 to 10/],
      ["more tokens than the session may ask for", { maxTokens: 5_000 }, /maxTokens is 5000, over the 4096/],
    ])("%s is field_invalid", async (_, options, sentence) => {
      const client = await greeted();
      client.sendRaw(encode([Op.START, 1, ask, options as object]));
      const [, , code, message] = await client.nextOf(Op.ERROR, 1);
      expect([code, message]).toEqual(["field_invalid", expect.stringMatching(sentence)]);
      client.send([Op.START, 2, ask, { maxTokens: 2 }]);
      expect(await readAnswer(client, 2)).toMatchObject({ seq: 2 });
    });

    // A number is used once: also after its answer is done.
    test("a stream's number cannot be used again", async () => {
      const client = await greeted();
      client.send([Op.START, 1, ask, { maxTokens: 2 }]);
      await readAnswer(client, 1);
      client.send([Op.START, 1, ask, { maxTokens: 2 }]);
      const [, , code, message] = await client.nextOf(Op.ERROR, 1);
      expect([code, message]).toEqual(["stream_reused", "stream 1 was used on this connection before"]);
    });

    // A class is a promise that was paid for: a chat session may ask for less than it has, never for more.
    test("a class tighter than the session's is refused", async () => {
      const client = await greeted({});
      client.send([Op.START, 1, ask, { maxTokens: 2, class: "voice" }]);
      expect((await client.nextOf(Op.ERROR, 1)).slice(2, 4)).toEqual([
        "field_invalid",
        'class is "voice", tighter than this session\'s "chat"',
      ]);
      client.send([Op.START, 2, ask, { maxTokens: 2, class: "batch" }]);
      await readAnswer(client, 2);
    });

    // ERROR is a stream's last message: an answer whose number is used again while it runs says no more.
    test("reusing a running stream's number ends that stream", async () => {
      const client = await greeted({ answerTokens: 100_000, contextTokens: 200_000 }, { tokensMax: 200_000 });
      client.send([Op.START, 1, ask, {}]);
      await client.nextOf(Op.TOKENS, 1);
      client.send([Op.START, 1, ask, {}]);
      expect((await client.nextOf(Op.ERROR, 1))[2]).toBe("stream_reused");
      const at = client.received.length;
      client.send([Op.START, 2, ask, { maxTokens: 5 }]);
      await readAnswer(client, 2);
      expect(client.received.slice(at).filter((message) => message[1] === 1)).toEqual([]);
      expect(carrier.load()).toMatchObject({ running: 0 });
    });

    // The assertion's bound on streams holds, and is over when one ends.
    test("more streams than allowed are streams_exhausted", async () => {
      const client = await greeted({ answerTokens: 100_000, contextTokens: 200_000 }, { streamsMax: 2, tokensMax: 200_000 });
      client.send([Op.START, 1, ask, {}]);
      client.send([Op.START, 2, ask, {}]);
      client.send([Op.START, 3, ask, {}]);
      const [, , code, message] = await client.nextOf(Op.ERROR, 3);
      expect([code, message]).toEqual(["streams_exhausted", expect.stringContaining("2 streams run")]);
      client.send([Op.CANCEL, 1]);
      await client.nextOf(Op.DONE, 1);
      client.send([Op.START, 4, ask, { maxTokens: 1 }]);
      await client.nextOf(Op.STARTED, 4);
    });

    // What cannot be read closes the connection, with a code of the table and a sentence.
    test.each([
      ["a text message", "hello", "frame_not_binary", 4415],
      ["garbage", Uint8Array.of(0xc1, 0xff, 0x00), "frame_malformed", 4400],
      ["no bytes at all", new Uint8Array(), "frame_malformed", 4400],
      ["an array cut short", encode([Op.CANCEL, 1]).slice(0, 2), "frame_malformed", 4400],
      ["an unknown op", Uint8Array.of(0x92, 99, 1), "op_unknown", 4400],
      ["a START on stream 0", encode([Op.START, 0, ask, {}]), "field_invalid", 4422],
    ])("%s closes the connection", async (_, bytes, code, closeCode) => {
      const client = await greeted();
      client.sendRaw(bytes);
      const end = await client.end();
      expect(end).toMatchObject({ code, close: { code: closeCode, reason: code } });
      expect(end.message.length).toBeGreaterThan(10);
    });

    // Draining: the client is told to go; what runs is finished, nothing new is taken, then the connection is closed with a reason.
    test("a drain lets answers finish and takes nothing new", async () => {
      const client = await greeted({ answerTokens: 200, tokensPerSecond: 400 });
      client.send([Op.START, 1, ask, {}]);
      await client.nextOf(Op.TOKENS, 1);
      const drained = carrier.drain();
      expect(await client.nextOf(Op.GOAWAY)).toEqual([Op.GOAWAY, 0, 5_000, "draining"]);
      client.send([Op.START, 2, ask, {}]);
      expect((await client.nextOf(Op.ERROR, 2))[2]).toBe("draining");
      const [, , seq, reason] = await client.nextOf(Op.DONE, 1);
      expect([seq, reason]).toEqual([200, "stop"]);
      client.disconnect();
      await drained;
    });

    // At the drain's deadline what still runs stops, and its reader is told with which token, to go on elsewhere from there.
    test("a drain hands off what runs past its deadline", async () => {
      carrier = await open({ answerTokens: 100_000, contextTokens: 200_000 }, 50);
      const client = await carrier.connect({ tokensMax: 200_000 });
      client.send([Op.START, 1, ask, {}]);
      await client.nextOf(Op.TOKENS, 1);
      const drained = carrier.drain();
      const [, , seq] = await client.nextOf(Op.HANDOFF, 1);
      const tokens = client.received.filter((message) => message[0] === Op.TOKENS);
      expect(seq).toBe(tokens.at(-1)?.[2]);
      expect(carrier.load()).toMatchObject({ running: 0, waiting: 0 });
      client.disconnect();
      await drained;
    });
  });
}
