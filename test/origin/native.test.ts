/** The native engine behind the seam, up to whole answers of the default model. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadNative } from "../../origin/native.js";
import { Origin } from "../../origin/origin.js";
import { defaultModelPath } from "../../scripts/setup/model.js";
import { type ChatMessage, Op } from "../../shared/protocol.js";
import { claims, edge, originName, readAnswer, SocketClient, sign } from "./support.js";

let origin: Origin;
let inference: Awaited<ReturnType<Origin["load"]>>;
const lines: string[] = [];
const clients: SocketClient[] = [];

beforeAll(async () => {
  const chosen = { model: defaultModelPath(), threads: undefined, contextTokens: 1_024, kvMemoryBytes: undefined, slots: 4 };
  const log = (line: string): void => void lines.push(line);
  const load = () => loadNative(chosen, log);
  origin = await Origin.listen({ host: "127.0.0.1", port: 0, name: originName, edgeKey: edge.publicKey, drainMs: 5_000, load, log });
  inference = await origin.load();
});
afterAll(async () => {
  for (const client of clients) client.disconnect();
  await origin?.drain();
});

async function connect(): Promise<SocketClient> {
  const client = await SocketClient.connect(origin.port, await sign(claims()));
  clients.push(client);
  return client;
}

test("HELLO and the log say what was loaded", async () => {
  const client = await connect();
  expect((await client.nextOf(Op.HELLO))[2]).toMatchObject({ engine: "native", model: inference.model.name, contextTokens: 1_024 });
  expect(lines.join("\n")).toMatch(/threads/);
});

// A model, not a mock: it knows this one.
test("the model answers a question", async () => {
  const client = await connect();
  client.send([Op.START, 1, [["user", "What is the capital of France? Answer in one sentence."]], { temperature: 0, maxTokens: 40 }]);
  const answer = await readAnswer(client, 1);
  expect(answer.text).toMatch(/Paris/);
  expect(answer.reason).toBe("stop");
});

// The same seed has the same text, alone and among others.
test("16 conversations at once on 4 slots: each complete, each with the answer it gets alone", async () => {
  const ask = (index: number): ChatMessage[] => [["user", `Write one sentence about the number ${index}.`]];
  const options = (index: number) => ({ maxTokens: 24, seed: index });
  const answers = await Promise.all(
    Array.from({ length: 16 }, async (_, index) => {
      const client = await connect();
      client.send([Op.START, 1, ask(index), options(index)]);
      return readAnswer(client, 1);
    }),
  );
  expect(new Set(answers.map(({ text }) => text)).size).toBeGreaterThan(12);
  const client = await connect();
  for (const index of [0, 7, 15]) {
    client.send([Op.START, index + 1, ask(index), options(index)]);
    expect(await readAnswer(client, index + 1)).toEqual(answers[index]);
  }
});

test("cancelled and abandoned answers free their slots", async () => {
  const client = await connect();
  const leaving = await connect();
  for (const one of [client, leaving]) {
    one.send([Op.START, 1, [["user", "Tell me a very long story about a water mill."]], { maxTokens: 900 }]);
    await one.nextOf(Op.TOKENS, 1);
  }
  client.send([Op.CANCEL, 1]);
  expect((await client.nextOf(Op.DONE, 1))[3]).toBe("cancelled");
  leaving.disconnect();
  client.send([Op.START, 2, [["user", "Hi"]], { maxTokens: 4 }]);
  await readAnswer(client, 2);
  expect(inference.load()).toMatchObject({ running: 0, waiting: 0 });
});

test("a stop string ends the answer before it", async () => {
  const client = await connect();
  const question: ChatMessage[] = [["user", "Count from one to ten in words."]];
  client.send([Op.START, 1, question, { temperature: 0, maxTokens: 40 }]);
  const whole = (await readAnswer(client, 1)).text;
  const stop = whole.slice(11, 19);
  client.send([Op.START, 2, question, { temperature: 0, maxTokens: 40, stop: [stop] }]);
  expect(await readAnswer(client, 2)).toMatchObject({ text: whole.slice(0, whole.indexOf(stop)), reason: "stop" });
});

test("a prompt over the context is refused with the numbers", async () => {
  const client = await connect();
  client.send([Op.START, 1, [["user", "mill ".repeat(100_000)]], { maxTokens: 10 }]);
  const [, , code, message] = await client.nextOf(Op.ERROR, 1);
  expect(code).toBe("context_exceeded");
  expect(message).toMatch(/^the prompt's 100\d\d\d tokens plus maxTokens 10 are 100\d\d\d, over the context of 1024/);
});
