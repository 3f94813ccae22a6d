/** The binding on a tiny model: what it refuses, in which order events come, and how engines and processes end. */
import { spawn } from "node:child_process";
import { text } from "node:stream/consumers";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { Engine, EngineError, type GenerateRequest, type Grammar, type LoadOptions } from "../../engine/binding/index.js";
import { ask, request } from "./support.js";
import { temporaryFolder, tiny, tinyModel } from "./tinyModel.js";

const folder = temporaryFolder();
let path: string;
beforeAll(() => {
  path = folder.write("tiny.gguf", tinyModel());
});
afterAll(() => folder.remove());

/** Longer than any test waits. */
const forever = 200_000;
const base: Partial<LoadOptions> = { threads: 2, slots: 2, contextTokens: tiny.context };

describe("loading refuses", () => {
  async function refusal(options: LoadOptions): Promise<string> {
    const error = await Engine.load(options).then(
      (engine) => engine.close().then(() => undefined),
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(EngineError);
    return (error as EngineError).message;
  }

  test("a file that is not there", async () => {
    expect(await refusal({ path: folder.path("none.gguf") })).toBe(
      `${folder.path("none.gguf")} cannot be opened: No such file or directory`,
    );
  });

  test("a folder", async () => {
    expect(await refusal({ path: folder.path(".") })).toMatch(/ is a folder without a config\.json/);
  });

  test("a file cut in half, with what to do", async () => {
    const whole = tinyModel();
    const half = folder.write("half.gguf", whole.subarray(0, whole.length / 2));
    expect(await refusal({ path: half })).toMatch(
      new RegExp(`^${half} has only ${whole.length / 2} bytes, but tensor .* ends at byte \\d+: the file is cut short; fetch it again$`),
    );
  });

  test("a file cut within its header", async () => {
    expect(await refusal({ path: folder.write("stub.gguf", tinyModel().subarray(0, 300)) })).toMatch(/inside its header.*cut short/);
  });

  test("a file of another kind", async () => {
    const zip = folder.write("model.zip", Buffer.concat([Buffer.from("PK"), Buffer.alloc(100)]));
    expect(await refusal({ path: zip })).toBe(`${zip} does not begin with GGUF: it is another kind of file`);
  });

  test("an architecture that we do not have, by name", async () => {
    const other = folder.write("other.gguf", tinyModel("falcon-h1"));
    expect(await refusal({ path: other })).toBe(
      `${other} is a model of the architecture "falcon-h1", which this engine does not have; it has: falcon, gemma2, gemma3, gpt-oss, llama, olmo2, phi3, qwen2, qwen3, qwen3moe`,
    );
  });

  test.each<[Partial<LoadOptions>, RegExp]>([
    [{ path: "" }, /^path is empty/],
    [{ threads: 0 }, /^threads is 0, not from 1 to 1024/],
    [{ threads: 1.5 }, /^threads is 1.5, not an integer/],
    [{ contextTokens: 8 }, /^contextTokens is 8, not from 16/],
    [{ contextTokens: 2 * tiny.context }, /^a context of 524288 tokens is more than the 262144 this model was trained for/],
    [{ kvMemoryBytes: 1000 }, /^KV memory of 1000 bytes holds no page of \d+ bytes; raise --kv-memory/],
    [{ slots: Number.NaN }, /^slots is NaN, not an integer/],
  ])("options that fit nothing: %o", async (options, sentence) => {
    expect(await refusal({ path, ...options })).toMatch(sentence);
  });
});

// Each load opens a way from the engine's thread into JavaScript: an async handle of the event loop.
test("a load that fails leaves no handle behind", async () => {
  const asyncHandles = (): number => {
    const { libuv } = process.report.getReport() as { libuv: { type: string }[] };
    return libuv.filter(({ type }) => type === "async").length;
  };
  const failing = (): Promise<unknown> => Engine.load({ path: folder.path("none.gguf") }).catch(() => undefined);
  await failing();
  const before = asyncHandles();
  for (let load = 0; load < 8; load++) await failing();
  // A handle's close is told in a later turn of the loop, and the test's own worker has some that come and go.
  await vi.waitFor(() => expect(asyncHandles()).toBeLessThan(before + 4));
});

describe("a loaded engine", () => {
  let engine: Engine;
  beforeEach(async () => {
    engine = await Engine.load({ path, ...base });
  });
  afterEach(() => engine.close());

  test("says what it is", () => {
    expect(engine.info).toMatchObject({
      name: "tiny",
      architecture: "llama",
      contextTokens: tiny.context,
      vocabularySize: 256,
      stopTokens: [],
    });
    expect(engine.info.log.join("\n")).toMatch(/threads \(asked for\)[\s\S]*KV memory/);
    const vocabulary = engine.vocabulary();
    expect(vocabulary.kind).toBe("gpt2");
    expect(vocabulary.tokens).toHaveLength(256);
    expect(vocabulary.tokens[0x41]).toBe("A");
    expect(vocabulary.types).toEqual(new Int32Array(256).fill(1));
    expect([vocabulary.bosToken, vocabulary.eosToken, vocabulary.unknownToken]).toEqual([-1, -1, -1]);
  });

  test.each<[Partial<GenerateRequest>, RegExp]>([
    [{ prompt: new Int32Array(0) }, /^the prompt is empty/],
    [{ prompt: [1, 2] as unknown as Int32Array }, /not an Int32Array/],
    [{ prompt: Int32Array.of(1, 256) }, /^token 256 is not in the vocabulary of 256/],
    [{ prompt: Int32Array.of(-1) }, /^token -1 is not in the vocabulary/],
    [{ maxTokens: 0 }, /^maxTokens is 0, not from 1/],
    [{ maxTokens: tiny.context }, /^the prompt's 3 tokens plus maxTokens 262144 are 262147, over the context of 262144/],
    [{ temperature: -1 }, /^temperature is -1, not from 0 to 10/],
    [{ temperature: Number.NaN }, /^temperature is NaN/],
    [{ topK: 1.5 }, /^topK is 1.5, not an integer/],
    [{ topP: 1.1 }, /^topP is 1.1, not from 0 to 1/],
    [{ minP: -0.1 }, /^minP is -0.1/],
    [{ repetitionPenalty: 0 }, /^repetitionPenalty is 0, not from 0.1 to 10/],
    [{ presencePenalty: 11 }, /^presencePenalty is 11/],
    [{ frequencyPenalty: -11 }, /^frequencyPenalty is -11/],
    [{ seed: 2 ** 53 }, /^seed is 9007199254740992, not from 0/],
    [{ stop: ["x", ""] }, /^a stop string is empty/],
    [{ minTokens: 3 }, /^minTokens is 3, not from 0 to 2/],
    [{ continueIds: Int32Array.of(1, 256) }, /^continueIds has token 256, which is not in the vocabulary of 256/],
    [{ continueIds: Int32Array.of(1, 2, 3) }, /^continueIds has 3 tokens, over the 2 that the answer may have/],
    [{ continueIds: [1] as unknown as Int32Array }, /^continueIds is not an Int32Array/],
    [{ continueIds: Int32Array.of(1), grammar: {} as Grammar }, /^continueIds stands beside a grammar/],
    [{ logprobs: 21 }, /^logprobs is 21, not from 0 to 20/],
    [{ logitBias: { 256: 1 } }, /^logitBias names token 256, which is not in the vocabulary of 256/],
    [{ logitBias: { [-1]: 1 } }, /^logitBias names token -1,/],
    [{ logitBias: { 3: 101 } }, /^logitBias of token 3 is 101, not from -100 to 100/],
    [{ logitBias: Object.fromEntries(Array.from({ length: 1025 }, (_, id) => [id, 0])) }, /^logitBias has 1025 tokens, over 1024/],
  ])("refuses a request of %o, and takes the next one", async (wrong, sentence) => {
    const submit = (): unknown => engine.submit(request([1, 2, 3], 2, wrong), () => {});
    expect(submit).toThrow(EngineError);
    expect(submit).toThrow(sentence);
    expect(await ask(engine, request([1, 2, 3], 2)).finished).toMatchObject({ reason: "length", seq: 2 });
  });

  test("tells a start, tokens with growing seq, and one end, none of it inside submit", async () => {
    const answer = ask(engine, request([10, 20, 30], 50));
    expect(answer.events).toEqual([]);
    const end = await answer.finished;
    expect(end).toMatchObject({ reason: "length", seq: 50, promptTokens: 3 });
    expect(answer.events[0]?.kind).toBe("started");
    let seq = 0;
    for (const event of answer.events.slice(1, -1)) {
      if (event.kind !== "tokens") throw new Error(`${event.kind} stands among the tokens`);
      seq += event.ids.length;
      expect(event.seq).toBe(seq);
      expect(event.request).toBe(answer.id);
      expect(event.ends).toHaveLength(event.ids.length);
      expect(event.ends.at(-1)).toBe(Buffer.byteLength(event.text));
      expect([...event.ends]).toEqual([...event.ends].sort((a, b) => a - b));
    }
    expect(seq).toBe(50);
    expect(answer.events.filter(({ kind }) => kind === "finished")).toHaveLength(1);
    const bytes = Uint8Array.from(answer.ids());
    expect(answer.text()).toBe(new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes));
  });

  test("says how many of a prompt's tokens an answer before it left in memory", async () => {
    const prompt = Array.from({ length: 60 }, (_, index) => (index * 11) % 256);
    const first = ask(engine, request(prompt, 20));
    expect(await first.finished).toMatchObject({ cachedTokens: 0 });
    const before = engine.stats().prefixCache;
    // The last token was sampled, but is not yet computed.
    expect(await ask(engine, request([...prompt, ...first.ids(), 7, 8], 5)).finished).toMatchObject({ cachedTokens: 79 });
    const { hits, hitTokens } = engine.stats().prefixCache;
    expect([hits - before.hits, hitTokens - before.hitTokens]).toEqual([1, 79]);
    const without = await Engine.load({ path, ...base, prefixCache: false });
    for (let time = 0; time < 2; time++) expect(await ask(without, request(prompt, 20)).finished).toMatchObject({ cachedTokens: 0 });
    await without.close();
  });

  test("lets others have the slots of those who are paused, who then go on", async () => {
    const paused = [ask(engine, request([1, 7], 5_000)), ask(engine, request([2, 7], 5_000))];
    await Promise.all(paused.map((answer) => answer.first("tokens")));
    for (const { id } of paused) engine.pause(id);
    await ask(engine, request([3, 7], 20)).finished;
    for (const { id } of paused) engine.resume(id);
    for (const answer of paused) {
      expect(await answer.finished).toMatchObject({ reason: "length", seq: 5_000 });
      const [first, second] = answer === paused[0] ? [1, 7] : [2, 7];
      const alone = ask(engine, request([first, second], 5_000));
      await alone.finished;
      expect(answer.ids()).toEqual(alone.ids());
    }
  });

  test("tells who waits his place, and lets him run when there is room", async () => {
    const running = [ask(engine, request([1], forever)), ask(engine, request([2], forever))];
    await Promise.all(running.map((answer) => answer.first("tokens")));
    const waiting = ask(engine, request([3], 4));
    expect(await waiting.first("queued")).toMatchObject({ place: 1 });
    expect(engine.stats()).toMatchObject({ running: 2, waiting: 1, slots: 2 });
    engine.cancel(running[0]?.id ?? 0);
    expect(await waiting.finished).toMatchObject({ reason: "length", seq: 4 });
    expect(running[1]?.events.at(-1)?.kind).toBe("tokens");
  });

  test("cancels an answer, after which it says nothing more", async () => {
    const answer = ask(engine, request([1, 2], forever));
    await answer.first("tokens");
    engine.cancel(answer.id);
    expect(await answer.finished).toMatchObject({ reason: "cancelled" });
    const told = answer.events.length;
    engine.cancel(answer.id);
    engine.cancel(12_345);
    // Another answer's whole life passes before we look again.
    await ask(engine, request([3], 20)).finished;
    expect(answer.events).toHaveLength(told);
    expect(engine.stats().running).toBe(0);
  });

  test("tells log-probabilities where they are asked for, and biases, lengthens and stops as asked", async () => {
    const plain = ask(engine, request([10, 20, 30], 6));
    await plain.finished;
    const answer = ask(engine, request([10, 20, 30], 6, { logprobs: 2, logitBias: { 65: 100, 66: -100 }, minTokens: 4, stop: ["AA"] }));
    expect(await answer.finished).toMatchObject({ reason: "stop", seq: 6 });
    expect(answer.text()).toBe("AAAA");
    const told = answer.events.flatMap((event) => (event.kind === "tokens" ? (event.logprobs ?? []) : []));
    expect(told.map(({ id }) => id)).toEqual(answer.ids());
    for (const { logprob, top } of told) {
      expect(top).toHaveLength(2);
      expect(top[0]?.logprob).toBeGreaterThanOrEqual(Math.max(logprob, top[1]?.logprob ?? 0));
      expect(logprob).toBeLessThan(0);
    }
    expect(plain.events.some((event) => "logprobs" in event)).toBe(false);
    // Before bias: the likeliest first token is what greedy takes without one.
    expect(told[0]?.top[0]?.id).toBe(plain.ids()[0]);
  });

  test("gives the same text for the same seed, and another for another", async () => {
    const sampled = async (seed: number): Promise<string> => {
      const answer = ask(engine, request([5, 6, 7], 40, { temperature: 1, seed }));
      await answer.finished;
      return answer.text();
    };
    const first = await sampled(7);
    expect(await sampled(7)).toBe(first);
    expect(await sampled(8)).not.toBe(first);
    expect(await sampled(Number.MAX_SAFE_INTEGER)).toBe(await sampled(Number.MAX_SAFE_INTEGER));
  });

  // What one engine began another goes on with: the answer is the one that the first would have given.
  test("continues an answer that was begun elsewhere", async () => {
    const asked = request([10, 20, 30], 40, { temperature: 1.2, seed: 5, repetitionPenalty: 1.2, frequencyPenalty: 0.5, logprobs: 1 });
    const whole = ask(engine, asked);
    const end = await whole.finished;
    const other = await Engine.load({ path, ...base });
    for (const count of [1, 17, 39, 40]) {
      const answer = ask(other, { ...asked, continueIds: Int32Array.from(whole.ids().slice(0, count)) });
      expect(await answer.finished).toMatchObject({ reason: end.reason, seq: end.seq, promptTokens: 3 });
      expect([answer.ids(), answer.text()]).toEqual([whole.ids(), whole.text()]);
      const told = answer.events.filter((event) => event.kind === "tokens");
      for (const { seq, ids, logprobs } of told) expect(logprobs?.map(({ id }) => id)).toEqual(seq > count ? [...ids] : undefined);
    }
    await other.close();
  });

  // A byte order mark at the beginning of an event is text like any other.
  test("says where each token's text ends", async () => {
    const answer = ask(engine, request([1], 6, { continueIds: Int32Array.of(0xef, 0xbb, 0xbf, 0x41, 0xc3, 0xa9) }));
    await answer.finished;
    expect(answer.events[0]).toMatchObject({ kind: "tokens", text: "\ufeffA\u00e9", ends: Uint32Array.of(3, 3, 3, 4, 6, 6) });
  });

  test("ends each request when it is closed under way, before the promise settles, and closes twice", async () => {
    const answers = [1, 2, 3, 4].map((token) => ask(engine, request([token], forever)));
    const evaluation = engine.evaluate(Int32Array.from({ length: 2000 }, (_, index) => index % 256)).then(
      () => "done",
      (error: unknown) => error,
    );
    await answers[0]?.first("tokens");
    const closed = engine.close();
    expect(engine.close()).toBe(closed);
    await closed;
    for (const answer of answers) expect(answer.events.at(-1)).toMatchObject({ kind: "finished", reason: "closed" });
    const evaluated = await evaluation;
    if (evaluated !== "done") expect((evaluated as Error).message).toBe("the engine is closed");
    expect(() => engine.submit(request([1], 1), () => {})).toThrow(/^the engine is closed$/);
    await expect(engine.evaluate(Int32Array.of(1))).rejects.toThrow(/^the engine is closed$/);
    engine.cancel(1);
    expect(engine.stats()).toMatchObject({ running: 0, waiting: 0 });
    expect(engine.info.name).toBe("tiny");
  });

  test("evaluates while it answers, to the same bits in any chunks", async () => {
    const answer = ask(engine, request([9], forever));
    const tokens = Int32Array.from({ length: 100 }, (_, index) => (index * 37) % 256);
    const whole = await engine.evaluate(tokens, 256);
    expect(whole).toHaveLength(100 * 256);
    for (const chunk of [1, 7, 33]) expect(Buffer.from((await engine.evaluate(tokens, chunk)).buffer)).toEqual(Buffer.from(whole.buffer));
    await expect(engine.evaluate(tokens, 0)).rejects.toThrow(/^chunkTokens is 0/);
    await expect(engine.evaluate(Int32Array.of(256))).rejects.toThrow(/^token 256/);
    engine.cancel(answer.id);
    await answer.finished;
  });
});

test("two engines side by side do not hear each other", async () => {
  const [a, b] = await Promise.all([Engine.load({ path, ...base }), Engine.load({ path, ...base })]);
  const answers = [ask(a, request([1, 2], 30)), ask(b, request([1, 2], 30))];
  expect(answers[0]?.id).toBe(answers[1]?.id);
  await a.close();
  expect(await answers[1]?.finished).toMatchObject({ reason: "length" });
  await b.close();
  for (const answer of answers) expect(answer.events.filter(({ kind }) => kind === "finished")).toHaveLength(1);
});

describe("a process", () => {
  /** Runs a script that has an engine and submits an answer of so many tokens; resolves with how it ended and what it printed. */
  async function run(
    maxTokens: number,
    script: string,
  ): Promise<{ status: number | null; signal: string | null; out: string; err: string }> {
    const binding = new URL("../../engine/binding/index.ts", import.meta.url).href;
    const support = new URL("./support.ts", import.meta.url).href;
    const code = `
      import { Engine } from ${JSON.stringify(binding)};
      import { ask, request } from ${JSON.stringify(support)};
      const engine = await Engine.load({ path: ${JSON.stringify(path)}, threads: 1, slots: 1, contextTokens: ${tiny.context} });
      const answer = ask(engine, request([1, 2, 3], ${maxTokens}));
      ${script}`;
    const file = folder.write(`script-${maxTokens}-${script.length}.mts`, code);
    const child = spawn(process.execPath, ["--import", "tsx", file], { cwd: new URL("../..", import.meta.url).pathname, stdio: "pipe" });
    const [out, err, ended] = await Promise.all([
      text(child.stdout),
      text(child.stderr),
      new Promise<{ status: number | null; signal: string | null }>((resolve) =>
        child.on("close", (status, signal) => resolve({ status, signal })),
      ),
    ]);
    return { ...ended, out, err };
  }

  test("that exits with an answer under way exits cleanly", async () => {
    const ended = await run(forever, `await answer.first("tokens"); process.exit(3);`);
    expect(ended).toMatchObject({ status: 3, signal: null, err: "" });
  });

  test("stays until its answers have ended, and no longer", async () => {
    const ended = await run(200, `void answer.finished.then(({ seq }) => console.log("finished", seq));`);
    expect(ended).toMatchObject({ status: 0, signal: null, err: "", out: "finished 200\n" });
  });

  test("ends after its engine was closed under way", async () => {
    const ended = await run(forever, `await answer.first("tokens"); await engine.close(); console.log((await answer.finished).reason);`);
    expect(ended).toMatchObject({ status: 0, signal: null, err: "", out: "closed\n" });
  });

  test("that throws in a listener ends as any uncaught error does", async () => {
    const ended = await run(
      forever,
      `engine.cancel(answer.id); engine.submit(request([1], 5), () => { throw new Error("from a listener"); });`,
    );
    expect(ended.signal).toBeNull();
    expect(ended.status).toBe(1);
    expect(ended.err).toContain("from a listener");
  });
});

// Both slots are taken for as long as the test runs, so nothing can be promised, however fast the machine.
test("a deadline that cannot be kept is refused with the time to retry, where the request would not wait", async () => {
  const engine = await Engine.load({ path, ...base });
  const running = [ask(engine, request([1], forever)), ask(engine, request([2], forever))];
  for (const answer of running) await answer.first("tokens");
  const refused = (): unknown => engine.submit(request([1], 40, { service: "voice", ttftMs: 1, itlMs: 0.1, waitMs: 0 }), () => {});
  expect(refused).toThrow(/cannot be promised now/);
  expect(refused).toThrow(expect.objectContaining({ retryAfterMs: expect.any(Number) }));
  const { misses, stepCosts } = engine.stats();
  expect(Object.keys(misses)).toEqual(["queueing", "prefill", "stepTime", "mapping", "reader"]);
  expect(Object.values(stepCosts).reduce((sum, us) => sum + us, 0)).toBeGreaterThan(0);
  await engine.close();
});
