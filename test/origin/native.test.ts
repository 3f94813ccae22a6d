/** The native engine behind the seam, up to whole answers of the default model. */
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { type Engine, EngineError, type EngineEvent } from "../../engine/binding/index.js";
import { isText, TokenType } from "../../origin/chat/vocabulary.js";
import type { InferenceListener, InferenceRequest, Released } from "../../origin/inference.js";
import { loadNative, NativeInference, readVocabulary } from "../../origin/native.js";
import { Origin } from "../../origin/origin.js";
import { type Release, TextReleaser } from "../../origin/simulatedText.js";
import { tokenBytes } from "../../origin/simulatedVocabulary.js";
import { greedy } from "../../scripts/bench/greedy.js";
import { Random } from "../../scripts/random.js";
import { defaultModelPath } from "../../scripts/setup/model.js";
import { serviceClasses } from "../../shared/classes.js";
import { MillraceError } from "../../shared/errors.js";
import { type ChatMessage, type ErrorMessage, Op, type StartOptions } from "../../shared/protocol.js";
import { claims, edge, originName, readAnswer, SocketClient, sign } from "./support.js";

let origin: Origin;
let inference: Awaited<ReturnType<Origin["load"]>>;
const lines: string[] = [];
const clients: SocketClient[] = [];

beforeAll(async () => {
  const chosen = {
    model: defaultModelPath(),
    threads: undefined,
    contextTokens: 1_024,
    kvMemoryBytes: undefined,
    slots: 4,
    kvType: undefined,
    kernels: undefined,
    deterministic: false,
    precision: undefined,
  };
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

// Whom nobody comes back for within its grace is cancelled.
test("cancelled and abandoned answers free their slots", async () => {
  const client = await connect();
  const leaving = await connect();
  for (const one of [client, leaving]) {
    one.send([Op.START, 1, [["user", "Tell me a very long story about a water mill."]], { maxTokens: 900, graceMs: 1 }]);
    await one.nextOf(Op.TOKENS, 1);
  }
  client.send([Op.CANCEL, 1]);
  expect((await client.nextOf(Op.DONE, 1))[3]).toBe("cancelled");
  leaving.disconnect();
  await vi.waitFor(() => expect(inference.load()).toMatchObject({ running: 0, waiting: 0 }), 10_000);
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

// What the model finds likely, whatever the sampler does: with the likeliest first token forbidden, another is taken and said to be less likely.
test("log-probabilities come with each token, a bias changes the answer, and minTokens and ignoreEos its end", async () => {
  const client = await connect();
  const question: ChatMessage[] = [["user", "What is the capital of France? Answer in one word."]];
  const ask = async (stream: number, options: StartOptions) => {
    client.send([Op.START, stream, question, { temperature: 0, maxTokens: 12, ...options }]);
    const { text, seq, reason } = await readAnswer(client, stream);
    const rows = client.received.flatMap((message) => (message[0] === Op.LOGPROBS && message[1] === stream ? message[3] : []));
    return { text, seq, reason, rows };
  };
  const plain = await ask(1, { logprobs: 3 });
  expect(plain.reason).toBe("stop");
  expect(plain.rows).toHaveLength(plain.seq - 1);
  for (const [id, logprob, likeliest, highest, ...rest] of plain.rows) {
    expect([likeliest, highest, rest.length]).toEqual([id, logprob, 4]);
    expect(logprob).toBeLessThanOrEqual(0);
  }
  const [first] = plain.rows[0] as number[];
  const other = await ask(2, { logprobs: 1, logitBias: { [first as number]: -100 } });
  const [id, logprob, likeliest, highest] = other.rows[0] as [number, number, number, number];
  expect([id === first, likeliest === first, logprob < highest]).toEqual([false, true, true]);
  expect(await ask(3, {})).toMatchObject({ text: plain.text, rows: [] });
  expect((await ask(4, { minTokens: 12 })).seq).toBe(12);
  expect(await ask(5, { ignoreEos: true })).toMatchObject({ seq: 12, reason: "length" });
  client.send([Op.START, 6, question, { logitBias: { 9999999: 1 } }]);
  expect((await client.nextOf(Op.ERROR, 6)).slice(2, 4)).toEqual([
    "field_invalid",
    expect.stringMatching(/^logitBias names token 9999999, which is not in the model's vocabulary of \d+/),
  ]);
});

// An engine that was built without them says so; one that has them keeps to the schema.
test("a format is kept to, or refused with how to have it", async () => {
  const client = await connect();
  const schema = {
    type: "object",
    properties: { city: { type: "string", maxLength: 20 } },
    required: ["city"],
    additionalProperties: false,
  };
  const question: ChatMessage[] = [["user", "What is the capital of France?"]];
  client.send([Op.START, 1, question, { maxTokens: 100, format: { kind: "json_schema", text: JSON.stringify(schema) } }]);
  client.send([Op.START, 2, question, { maxTokens: 10, format: { kind: "regex", text: "(a" } }]);
  const refusal = (await client.nextOf(Op.ERROR, 2)).slice(2, 4);
  if (String(refusal[1]).includes("npm run build")) {
    const missing = ["field_invalid", expect.stringMatching(/^the format cannot be used: this engine was built without .*--formats$/)];
    expect([(await client.nextOf(Op.ERROR, 1)).slice(2, 4), refusal]).toEqual([missing, missing]);
    return;
  }
  expect(refusal).toEqual(["field_invalid", expect.stringMatching(/^the format cannot be used: ./)]);
  expect(JSON.parse((await readAnswer(client, 1)).text)).toEqual({ city: expect.any(String) });
});

test("a prompt over the context is refused with the numbers", async () => {
  const client = await connect();
  client.send([Op.START, 1, [["user", "mill ".repeat(100_000)]], { maxTokens: 10 }]);
  const [, , code, message] = await client.nextOf(Op.ERROR, 1);
  expect(code).toBe("context_exceeded");
  expect(message).toMatch(/^the prompt's 100\d\d\d tokens plus maxTokens 10 are 100\d\d\d, over the context of 1024/);
});

// What the engine refuses for want of room is told with its own word on when to retry; what it can never run stays its error.
test("a refusal of the engine's is `overloaded`", () => {
  const asked: unknown[] = [];
  const answers = [new EngineError("no room", 70), new EngineError("never")];
  const engine = {
    info: { name: "m", contextTokens: 100, vocabularySize: 10, kernels: "reference", device: "", threads: 1 },
    offer(request: unknown) {
      asked.push(request);
      throw answers[asked.length - 1];
    },
  };
  const native = new NativeInference(engine as unknown as Engine, { types: [] });
  const deadlines = { ttftMs: 500, itlMs: 60, waitMs: 0 };
  const terms = { class: "voice", deadlines, tenant: "t", tenantWeight: 2 };
  const request = { prompt: Int32Array.of(1), maxTokens: 2, logitBias: {}, continueIds: new Int32Array(), ...terms };
  const submit = (): unknown =>
    native.submit(request as unknown as Parameters<typeof native.submit>[0], {} as Parameters<typeof native.submit>[1]);
  expect(submit).toThrow(new MillraceError("overloaded", "no room", 70));
  expect(submit).toThrow(EngineError);
  expect(asked[0]).toMatchObject({ service: "voice", ttftMs: 500, itlMs: 60, waitMs: 0, tenant: expect.any(Number), tenantWeight: 2 });
});

// What a START wishes is what is promised, or it is refused with the time to retry: nothing in between.
test("STARTED says what was promised, and a START that nothing can be promised is overloaded", async () => {
  const client = await connect();
  client.send([Op.START, 1, [["user", "Hi"]], { maxTokens: 2, ttftMs: 30_000, itlMs: 1_500 }]);
  const [, , , , , admission] = await client.nextOf(Op.STARTED, 1);
  if (!("ttftMs" in admission)) throw new Error(`it was queued: ${JSON.stringify(admission)}`);
  expect(admission.ttftMs).toBeCloseTo(30_000, 0);
  expect(admission.itlMs).toBe(1_500);
  await readAnswer(client, 1);
  const long = "The wheel turns. ".repeat(200);
  for (let stream = 2; stream < 14; stream++)
    client.send([Op.START, stream, [["user", long]], { maxTokens: 20, ttftMs: 500, itlMs: 60, waitMs: 0 }]);
  const refused: ErrorMessage[] = [];
  for (let ended = 0; ended < 12; ) {
    const message = await client.next();
    if (message[0] === Op.ERROR) refused.push(message);
    if (message[0] === Op.ERROR || message[0] === Op.DONE) ended++;
  }
  expect(refused.length).toBeGreaterThan(0);
  for (const [, , code, message, retryAfterMs] of refused) {
    expect([code, message]).toEqual(["overloaded", expect.stringMatching(/cannot be promised now/)]);
    expect(retryAfterMs).toBeGreaterThan(0);
  }
});

/** A request for the engine itself, without a session around it. */
const plain: InferenceRequest = {
  ...{ prompt: Int32Array.of(1), maxTokens: 8, ...greedy, minTokens: 0, ignoreEos: false, logitBias: {}, logprobs: undefined },
  ...{ format: undefined, continueIds: new Int32Array(), class: "chat", deadlines: serviceClasses.chat, tenant: "t", tenantWeight: 1 },
};

// What is told of the engine's events, and what is asked of it, without a model.
test("events are told with their ids and ends, and who is paused and resumed is the engine's", () => {
  const asked: string[] = [];
  let tell!: (event: EngineEvent) => void;
  const engine = {
    info: { name: "m", contextTokens: 100, vocabularySize: 10, kernels: "reference", device: "", threads: 1 },
    offer: (_: unknown, listener: typeof tell) => {
      tell = listener;
      return { id: 7, admission: { ttftMs: 1, itlMs: 1 } };
    },
    cancel: (id: number) => asked.push(`cancel ${id}`),
    pause: (id: number) => asked.push(`pause ${id}`),
    resume: (id: number) => asked.push(`resume ${id}`),
  };
  const told: unknown[] = [];
  const listener: InferenceListener = {
    queued: (place) => told.push(place),
    tokens: (released) => told.push(released),
    finished: ({ seq, reason, prefillMs }) => told.push([seq, reason, prefillMs]),
    failed: (why) => told.push(why),
  };
  const handle = new NativeInference(engine as unknown as Engine, { types: [] }).submit(plain, listener);
  handle.pause();
  handle.resume();
  handle.cancel();
  expect(asked).toEqual(["pause 7", "resume 7", "cancel 7"]);
  const logprobs = [{ id: 4, logprob: -1, top: [] }];
  const end = { request: 7, seq: 3, queueUs: 0, prefillUs: 1_500, decodeUs: 0, promptTokens: 1, cachedTokens: 0, error: "" };
  tell({ kind: "queued", request: 7, place: 2 });
  tell({ kind: "tokens", request: 7, seq: 2, text: "a\u00e9", ids: Int32Array.of(5, 6), ends: Uint32Array.of(1, 3) });
  tell({ kind: "tokens", request: 7, seq: 3, text: "", ids: Int32Array.of(4), ends: Uint32Array.of(0), logprobs });
  tell({ kind: "finished", reason: "stop", ...end });
  tell({ kind: "finished", reason: "closed", ...end });
  expect(told).toEqual([
    2,
    { seq: 2, text: "a\u00e9", ids: [5, 6], ends: [1, 3] },
    { seq: 3, text: "", ids: [4], ends: [0], logprobs },
    [3, "stop", 1.5],
    "the engine was closed while it answered",
  ]);
});

test("an answer is continued with text alone", () => {
  const engine = { info: { name: "m", contextTokens: 100, vocabularySize: 3, kernels: "reference", device: "", threads: 1 } };
  const native = new NativeInference(engine as unknown as Engine, { types: [TokenType.normal, TokenType.control, TokenType.byte] });
  const refusal =
    (...ids: number[]): unknown =>
    () =>
      native.submit({ ...plain, continueIds: Int32Array.from(ids) }, {} as InferenceListener);
  const invalid = (message: string): unknown => new MillraceError("field_invalid", message);
  expect(refusal(0, 1)).toThrow(invalid("continueIds has the control token 1, which no answer contains") as Error);
  expect(refusal(2, 3)).toThrow(invalid("continueIds has token 3, which is not in the model's vocabulary of 3") as Error);
  expect(refusal(-1)).toThrow(invalid("continueIds has token -1, which is not in the model's vocabulary of 3") as Error);
});

// A client that comes back with the ids it has gets the answer that it would have had, penalties, seed and digest included.
test("an answer that is started again with its first tokens is the undisturbed one", async () => {
  const client = await connect();
  const question: ChatMessage[] = [["user", "Name five birds, each with its colour and an emoji."]];
  const options: StartOptions = { temperature: 0.9, presencePenalty: 0.5, seed: 11, maxTokens: 60, tokenIds: true };
  client.send([Op.START, 1, question, options]);
  const whole = await readAnswer(client, 1);
  const heard = client.received.flatMap((message) => (message[0] === Op.TOKENS && message[1] === 1 ? [message] : []));
  const ids = heard.flatMap((message) => [...(message[5] ?? [])]);
  for (const [stream, messages] of [1, Math.ceil(heard.length / 2), heard.length].entries()) {
    const had = heard.slice(0, messages);
    const seq = had.at(-1)?.[2] ?? 0;
    client.send([Op.START, stream + 2, question, { ...options, continueIds: ids.slice(0, seq), attempt: 2 }]);
    expect(await readAnswer(client, stream + 2, { text: had.map((message) => message[3]).join(""), seq })).toEqual(whole);
  }
  client.send([Op.START, 9, question, { continueIds: [0] }]);
  expect((await client.nextOf(Op.ERROR, 9)).slice(2, 4)).toEqual([
    "field_invalid",
    expect.stringMatching(/token 0, which no answer contains/),
  ]);
});

// Out of credit the engine computes nothing more of it, and others get on; with more credit it goes on with the token that it would have had.
test("an answer waits for credit, and goes on as if it had not", async () => {
  const client = await connect();
  const question: ChatMessage[] = [["user", "Tell me a story of a mill."]];
  const options: StartOptions = { temperature: 0.8, seed: 4, maxTokens: 40, ignoreEos: true };
  client.send([Op.START, 1, question, options]);
  const whole = await readAnswer(client, 1);
  client.send([Op.START, 2, question, { ...options, creditSeq: 5 }]);
  let had = { text: "", seq: 0 };
  while (had.seq < 5) {
    const [, , seq, text] = await client.nextOf(Op.TOKENS, 2);
    had = { text: had.text + text, seq };
  }
  expect(had.seq).toBe(5);
  client.send([Op.START, 3, question, options]);
  expect(await readAnswer(client, 3)).toEqual(whole);
  expect(client.received.filter((message) => message[0] === Op.TOKENS && message[1] === 2).at(-1)?.[2]).toBe(5);
  client.send([Op.CREDIT, 2, 1_000]);
  expect(await readAnswer(client, 2, had)).toEqual(whole);
});

// The simulated inference decodes as this one does: random tokens of the real vocabulary, most of them no whole code points, and stop strings.
test("the engine's releaser and the simulated inference's agree", async () => {
  const vocabulary = await readVocabulary(defaultModelPath());
  const bytes = tokenBytes(vocabulary);
  const seed = Math.floor(Math.random() * 2 ** 32);
  const random = new Random(seed);
  const all = vocabulary.tokens.map((_, id) => id).filter((id) => isText(vocabulary, id));
  const split = all.filter((id) =>
    Buffer.from(bytes[id] ?? [])
      .toString()
      .includes("\ufffd"),
  );
  expect(split.length).toBeGreaterThan(100);
  const told = async (changes: Partial<InferenceRequest>): Promise<Released[]> => {
    const all: Released[] = [];
    await new Promise<void>((finished, failed) => {
      const listener = { queued: () => {}, tokens: (released: Released) => all.push(released), finished: () => finished(), failed };
      inference.submit({ ...plain, maxTokens: 1_000, ...changes }, listener);
    });
    return all;
  };
  let stopped = 0;
  for (let round = 0; round < 20; round++) {
    const ids = Array.from({ length: 1_000 }, () => random.pick(random.chance(0.8) ? split : all));
    const stop = random.chance(0.5) ? [] : ["\ufffd\ufffd\ufffd", " the", "ing", "\u00e9"];
    const minTokens = random.between(0, 100);
    const released = await told({ continueIds: Int32Array.from(ids), stop, minTokens });
    const releaser = new TextReleaser(stop);
    const ours: Release[] = [];
    for (const [index, id] of ids.entries()) {
      ours.push(releaser.push(id, bytes[id] as Uint8Array, index + 1 > minTokens));
      if (ours.at(-1)?.stopped) break;
    }
    if (ours.at(-1)?.stopped) stopped++;
    else ours.push(releaser.flush());
    expect(
      released.flatMap((each) => each.ids),
      `seed ${seed}`,
    ).toEqual(ours.flatMap((each) => each.ids));
    expect(textsOf(released), `seed ${seed}`).toEqual(textsOf(ours));
  }
  expect(stopped).toBeGreaterThan(0);
});

/** The text of each token. */
function textsOf(all: readonly { text: string; ends: readonly number[] }[]): string[] {
  return all.flatMap(({ text, ends }) => {
    const utf8 = Buffer.from(text);
    return ends.map((end, index) => utf8.subarray(ends[index - 1] ?? 0, end).toString());
  });
}
