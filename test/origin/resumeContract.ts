/** What a client that comes back sees of a session, over whatever carries it: transcripts of resuming, restarting, credit and truncation. */
import { afterEach, describe, expect, test } from "vitest";
import type { SimulatedOptions } from "../../origin/simulated.js";
import type { AssertionClaims } from "../../shared/assertion.js";
import { type ChatMessage, Op, type StartOptions, type Tokens } from "../../shared/protocol.js";
import type { Carrier } from "./sessionContract.js";
import { type Had, readAnswer, type TestClient } from "./support.js";

const ask: ChatMessage[] = [["user", "How does a mill race work?"]];
const all = Number.MAX_SAFE_INTEGER;

export function resumeContract(name: string, open: (options?: Partial<SimulatedOptions>) => Promise<Carrier>): void {
  describe(name, () => {
    let carrier: Carrier;
    let epoch = "";
    afterEach(() => carrier.close());

    const start = async (options: Partial<SimulatedOptions> = {}): Promise<TestClient> => {
      carrier = await open({ answerTokens: 60, tokensPerSecond: 500, ...options });
      return connect();
    };
    const connect = async (changes: Partial<AssertionClaims> = {}): Promise<TestClient> => {
      const client = await carrier.connect({}, changes);
      epoch = (await client.nextOf(Op.HELLO))[2].epoch;
      return client;
    };
    /** Reads so many tokens at least. */
    const readSome = async (client: TestClient, stream: number, tokens: number): Promise<Had & { ids: number[] }> => {
      const had = { text: "", seq: 0, ids: [] as number[] };
      while (had.seq < tokens) {
        const [, , seq, text, , ids = []] = await client.nextOf(Op.TOKENS, stream);
        had.text += text;
        had.seq = seq;
        had.ids.push(...ids);
      }
      return had;
    };
    const wholeAnswer = async (options: StartOptions = {}): Promise<{ text: string; seq: number }> => {
      const client = await connect();
      client.send([Op.START, 1, ask, options]);
      return readAnswer(client, 1);
    };

    // A socket dies in mid-answer: the next one has exactly what was missing, and the digest is that of the whole.
    test("RESUME replays what is missing, and goes on", async () => {
      const leaving = await start();
      leaving.send([Op.START, 1, ask, {}]);
      const [, , response, promptTokens] = await leaving.nextOf(Op.STARTED, 1);
      const had = await readSome(leaving, 1, 10);
      leaving.disconnect();
      const back = await connect();
      back.send([Op.RESUME, 7, epoch, response, had.seq, all]);
      expect(await back.nextOf(Op.RESUMED, 7)).toEqual([Op.RESUMED, 7, response, expect.any(Number), promptTokens, 0]);
      const answer = await readAnswer(back, 7, had);
      expect(answer).toMatchObject({ ...(await wholeAnswer()), reason: "stop" });
    });

    // Also from inside what was one message, and after the end, as long as the text is kept.
    test("RESUME from any token, after DONE too", async () => {
      const client = await start();
      client.send([Op.START, 1, ask, { tokenIds: true }]);
      const [, , response] = await client.nextOf(Op.STARTED, 1);
      const whole = await readAnswer(client, 1);
      const ids = (client.received.filter(([op]) => op === Op.TOKENS) as Tokens[]).flatMap((message) => message[5] ?? []);
      for (const seq of [0, 1, 7, 23, whole.seq - 2, whole.seq - 1]) {
        client.send([Op.RESUME, 100 + seq, epoch, response, seq, all]);
        let text = "";
        const rest: number[] = [];
        for (;;) {
          const message = await client.next(100 + seq);
          if (message[0] === Op.DONE) break;
          if (message[0] !== Op.TOKENS) continue;
          text += message[3];
          rest.push(...(message[5] ?? []));
        }
        expect(whole.text.endsWith(text)).toBe(true);
        expect(rest).toEqual(ids.slice(seq));
        if (seq === 0) expect(text).toBe(whole.text);
      }
    });

    test("where the answer is not, RESUME says so, and why", async () => {
      const client = await start();
      client.send([Op.START, 1, ask, {}]);
      const [, , response] = await client.nextOf(Op.STARTED, 1);
      client.send([Op.RESUME, 2, "another", response, 0, all]);
      expect(await client.next(2)).toEqual([Op.MISROUTED, 2, epoch]);
      client.send([Op.RESUME, 3, epoch, "no such response", 0, all]);
      expect(await client.next(3)).toEqual([Op.EXPIRED, 3, 0, "unknown"]);
      client.send([Op.RESUME, 4, epoch, response, 50_000, all]);
      expect((await client.nextOf(Op.ERROR, 4)).slice(2, 4)).toEqual(["field_invalid", expect.stringContaining("seq is 50000")]);
      const stranger = await connect({ sub: "user-2" });
      stranger.send([Op.RESUME, 1, epoch, response, 0, all]);
      expect(await stranger.next(1)).toEqual([Op.EXPIRED, 1, 0, "unknown"]);
      const bereaved = await connect({ dead: "another" });
      bereaved.send([Op.RESUME, 1, "another", response, 0, all]);
      expect(await bereaved.next(1)).toEqual([Op.GONE, 1, "another"]);
    });

    // Two STARTs of one key are one response, whether it runs or is over; with another body they are refused.
    test("a key starts once", async () => {
      const client = await start();
      client.send([Op.START, 1, ask, { key: "k", maxTokens: 30 }]);
      const [, , response] = await client.nextOf(Op.STARTED, 1);
      await readSome(client, 1, 5);
      client.send([Op.START, 2, ask, { maxTokens: 30, key: "k", sentTo: epoch }]);
      expect((await client.nextOf(Op.RESUMED, 2))[2]).toBe(response);
      const second = await readAnswer(client, 2);
      expect(carrier.load()).toMatchObject({ running: 0 });
      client.send([Op.START, 3, ask, { maxTokens: 30, key: "k" }]);
      expect(await readAnswer(client, 3)).toEqual({ ...second, promptTokens: second.promptTokens });
      client.send([Op.START, 4, ask, { maxTokens: 31, key: "k" }]);
      expect((await client.nextOf(Op.ERROR, 4))[2]).toBe("key_conflict");
      client.send([Op.START, 5, ask, { key: "fresh", sentTo: "another" }]);
      expect(await client.next(5)).toEqual([Op.MISROUTED, 5, epoch]);
      const stranger = await connect({ sub: "user-2" });
      stranger.send([Op.START, 1, [["user", "mine"]], { key: "k", maxTokens: 2 }]);
      await readAnswer(stranger, 1);
    });

    // After GONE the answer goes on with the ids that the client has: joined, it is the undisturbed one, and the digest covers all of it.
    test.each([1, 2, 9, 31])("a restart with %i tokens joins", async (tokens) => {
      const client = await start();
      // It has too little credit to end before the second attempt is there, and enough for what a token holds back.
      client.send([Op.START, 1, ask, { key: "k", tokenIds: true, creditSeq: tokens + 8 }]);
      const had = await readSome(client, 1, tokens);
      client.send([Op.START, 2, ask, { key: "k", tokenIds: true, attempt: 2, continueIds: had.ids }]);
      const answer = await readAnswer(client, 2, had);
      expect(answer).toMatchObject(await wholeAnswer());
      // The lower attempt was cancelled.
      expect((await client.nextOf(Op.DONE, 1))[3]).toBe("cancelled");
      const done = client.received.find(([op, stream]) => op === Op.DONE && stream === 2);
      expect(done?.[6]).toMatchObject({ continuedTokens: had.seq, completionTokens: answer.seq });
    });

    test("special tokens cannot be continued with", async () => {
      const client = await start();
      client.send([Op.START, 1, ask, { continueIds: [0] }]);
      expect((await client.nextOf(Op.ERROR, 1)).slice(2, 4)).toEqual(["field_invalid", expect.stringContaining("special token 0")]);
    });

    // No token goes beyond the credit; the answer waits, and what it missed comes once there is more.
    test("credit parks and resumes an answer", async () => {
      const client = await start({ tokensPerSecond: 5_000 });
      client.send([Op.START, 1, ask, { creditSeq: 4 }]);
      const had = await readSome(client, 1, 4);
      expect(had.seq).toBe(4);
      const other = await wholeAnswer();
      expect(client.received.filter(([op]) => op === Op.TOKENS).at(-1)?.[2]).toBe(4);
      client.send([Op.CREDIT, 1, 3]);
      client.send([Op.CREDIT, 1, 20]);
      const more = await readSome(client, 1, 20);
      expect(more.seq).toBe(20);
      client.send([Op.CREDIT, 1, all]);
      expect(await readAnswer(client, 1, { text: had.text + more.text, seq: 20 })).toMatchObject(other);
      const done = client.received.at(-1);
      expect(done?.[0] === Op.DONE && done[7].parkedMs).toBeGreaterThan(0);
    });

    // The engine runs as far as the most eager subscriber; each has its own place.
    test("two subscribers, of whom one may stop it", async () => {
      const client = await start({ answerTokens: 100_000, contextTokens: 200_000 });
      client.send([Op.START, 1, ask, {}]);
      const [, , response] = await client.nextOf(Op.STARTED, 1);
      const other = await connect();
      other.send([Op.RESUME, 1, epoch, response, 0, 5]);
      await readSome(other, 1, 5);
      await readSome(client, 1, 30);
      other.send([Op.CREDIT, 1, all]);
      other.send([Op.CANCEL, 1]);
      const ends = [await client.nextOf(Op.DONE, 1), await other.nextOf(Op.DONE, 1)];
      for (const [, , , reason] of ends) expect(reason).toBe("cancelled");
      expect(ends[0]?.slice(2, 6)).toEqual(ends[1]?.slice(2, 6));
      expect(textOf(client)).toBe(textOf(other));
    });

    test("a fifth subscriber is refused", async () => {
      const client = await start({ answerTokens: 100_000, contextTokens: 200_000 });
      client.send([Op.START, 1, ask, {}]);
      const [, , response] = await client.nextOf(Op.STARTED, 1);
      for (const stream of [2, 3, 4, 5]) client.send([Op.RESUME, stream, epoch, response, 0, all]);
      expect((await client.nextOf(Op.ERROR, 5))[2]).toBe("subscribers_exhausted");
      client.send([Op.CANCEL, 3]);
      for (const stream of [1, 2, 3, 4]) await client.nextOf(Op.DONE, stream);
    });

    // The user heard so much: the answer ends there, for all who follow it, and for the next turn's history.
    test("TRUNCATE ends the answer and cuts the history", async () => {
      const client = await start({ answerTokens: 100_000, contextTokens: 200_000 });
      client.send([Op.START, 1, ask, {}]);
      const [, , response] = await client.nextOf(Op.STARTED, 1);
      const had = await readSome(client, 1, 12);
      const bytes = new TextEncoder().encode(had.text);
      // In the middle of a code point the cut is before it.
      const inside = bytes.findIndex((byte) => (byte & 0xc0) === 0x80);
      const asked = inside < 0 ? 7 : inside;
      client.send([Op.TRUNCATE, 1, asked]);
      const [, , , cut] = await client.nextOf(Op.TRUNCATED, 1);
      expect(cut).toBeLessThanOrEqual(asked);
      const heard = new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(0, cut));
      expect((await client.nextOf(Op.DONE, 1))[3]).toBe("cancelled");
      client.send([Op.START, 2, [["user", "And then?"]], { after: response, maxTokens: 5 }]);
      const joined = await readAnswer(client, 2);
      client.send([Op.START, 3, [...ask, ["assistant", heard], ["user", "And then?"]], { maxTokens: 5 }]);
      expect(await readAnswer(client, 3)).toEqual(joined);
      client.send([Op.TRUNCATE, 1, 1]);
      expect((await client.nextOf(Op.TRUNCATED, 1))[3]).toBeLessThanOrEqual(1);
      client.send([Op.START, 4, ask, { after: "no such response" }]);
      expect((await client.nextOf(Op.ERROR, 4))[2]).toBe("history_unknown");
    });
  });
}

function textOf(client: TestClient): string {
  return (client.received.filter(([op]) => op === Op.TOKENS) as Tokens[]).map((message) => message[3]).join("");
}
