/** An answer from START to its end, with an inference that does exactly what it is told. */
import { beforeEach, describe, expect, test } from "vitest";
import { Turnstile } from "../../origin/chat/turnstile.js";
import type { Inference, InferenceHandle, InferenceListener, InferenceRequest } from "../../origin/inference.js";
import { Metrics } from "../../origin/metrics.js";
import { Responses, type StartRequest, type Subscriber } from "../../origin/responses.js";
import { ServiceTerms } from "../../origin/terms.js";
import { serviceClasses } from "../../shared/classes.js";
import { Digest } from "../../shared/digest.js";
import { MillraceError } from "../../shared/errors.js";
import type { Admission, Format } from "../../shared/protocol.js";

/** Takes requests down and lets the test speak for the engine. */
class ScriptedInference implements Inference {
  readonly kind = "simulated";
  readonly model = { name: "scripted", contextTokens: 100, runsOn: "a script" };
  readonly cancelled: number[] = [];
  submitted: { request: InferenceRequest; listener: InferenceListener }[] = [];
  refusal: MillraceError | undefined;
  admission: Admission = { ttftMs: 400, itlMs: 50 };

  submit(request: InferenceRequest, listener: InferenceListener): InferenceHandle {
    if (this.refusal) throw this.refusal;
    const index = this.submitted.push({ request, listener }) - 1;
    return { admission: this.admission, cancel: () => this.cancelled.push(index) };
  }
  async compile(format: Format): Promise<object> {
    if (format.text === "bad") throw new MillraceError("field_invalid", "bad format");
    return { compiled: format };
  }
  load() {
    return { running: this.submitted.length, waiting: 0, slots: 1, kvBytesMapped: 5, kvBytesMax: 10, misses: { prefill: 3, reader: 0 } };
  }
  async close(): Promise<void> {}
}

const terms = new ServiceTerms({ ...serviceClasses, voice: { ttftMs: 800, itlMs: 60, waitMs: 0 } }, new Map([["tenant-1", 3]]));
let inference: ScriptedInference;
let metrics: Metrics;
let lines: string[];
let events: unknown[][];
let responses: Responses;
let build: () => Promise<{ ids: Int32Array; maxTokens: number; dropped: number }>;

beforeEach(() => {
  inference = new ScriptedInference();
  metrics = new Metrics();
  lines = [];
  events = [];
  build = async () => ({ ids: Int32Array.of(1, 2, 3), maxTokens: 9, dropped: 2 });
  responses = new Responses({
    inference,
    turnstile: new Turnstile(),
    prompts: { build: () => build() },
    terms,
    metrics,
    log: (line) => lines.push(line),
  });
});

const subscriber: Subscriber = {
  started: (_, promptTokens, dropped) => events.push(["started", promptTokens, dropped]),
  queued: (place) => events.push(["queued", place]),
  tokens: (seq, text, ...logprobs) => events.push(["tokens", seq, text, ...logprobs.filter((each) => each !== undefined)]),
  done: (end) => events.push(["done", end]),
  failed: (error) => events.push(["failed", error.code, error.message]),
};
const request = (options: StartRequest["options"] = {}): StartRequest => ({
  messages: [["user", "hi"]],
  options,
  class: "voice",
  tenant: "tenant-1",
  user: "user-1",
  tokensMax: 50,
});
const listener = (): InferenceListener => inference.submitted[0]?.listener as InferenceListener;
/** Lets what was awaited go on. */
const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
const end = { seq: 3, reason: "stop", cachedTokens: 2, queueMs: 1, prefillMs: 2, decodeMs: 4 } as const;

test("events go through in order, and DONE has digest, usage and timings", async () => {
  responses.start(request(), subscriber);
  expect(events).toEqual([]);
  await settled();
  listener().queued(2);
  listener().tokens(1, "w\u00e4");
  listener().tokens(2, "ter");
  listener().finished(end);
  const digest = new Digest();
  digest.update(new TextEncoder().encode("w\u00e4ter"));
  expect(events).toEqual([
    ["started", 3, 2],
    ["queued", 2],
    ["tokens", 1, "w\u00e4"],
    ["tokens", 2, "ter"],
    [
      "done",
      {
        seq: 3,
        reason: "stop",
        textBytes: 6,
        digest: digest.value,
        usage: { promptTokens: 3, cachedTokens: 2, completionTokens: 3 },
        timings: { queueMs: expect.any(Number), prefillMs: 2, decodeMs: 4 },
      },
    ],
  ]);
  const { timings } = (events.at(-1) as [string, { timings: { queueMs: number } }])[1];
  expect(timings.queueMs).toBeGreaterThan(1);
  expect(responses.count).toBe(0);
});

test("what START leaves open is sampled with the documented defaults and a seed drawn anew", async () => {
  responses.start(request(), subscriber);
  responses.start(request({ temperature: 0, topK: 5, seed: 42, stop: ["x"] }), subscriber);
  responses.start(request(), subscriber);
  await settled();
  const [first, second, third] = inference.submitted.map((one) => one.request) as [InferenceRequest, InferenceRequest, InferenceRequest];
  expect(first).toMatchObject({
    maxTokens: 9,
    temperature: 0.2,
    topK: 0,
    topP: 0.9,
    minP: 0,
    repetitionPenalty: 1,
    stop: [],
    class: "voice",
    tenant: "tenant-1",
  });
  expect(second).toMatchObject({ temperature: 0, topK: 5, topP: 0.9, seed: 42, stop: ["x"] });
  expect(Number.isSafeInteger(first.seed)).toBe(true);
  expect(first.seed).not.toBe(third.seed);
});

test("what START says of an answer's end, bias and log-probabilities reaches the engine, and log-probabilities come back", async () => {
  responses.start(request({ minTokens: 9, ignoreEos: true, logitBias: { 5: -1 }, logprobs: 2 }), subscriber);
  responses.start(request(), subscriber);
  await settled();
  expect(inference.submitted[0]?.request).toMatchObject({ minTokens: 9, ignoreEos: true, logitBias: { 5: -1 }, logprobs: 2 });
  expect(inference.submitted[1]?.request).toMatchObject({ minTokens: 0, ignoreEos: false, logitBias: {}, logprobs: undefined });
  const logprobs = [{ id: 3, logprob: -1, top: [] }];
  listener().tokens(1, "a", logprobs);
  expect(events.at(-1)).toEqual(["tokens", 1, "a", logprobs]);
});

// The reader counts from START, the engine from when it is asked: what tokenizing took is taken off, and put on again in what is told.
test("deadlines are the class's or the START's own, from START on, and STARTED says what was promised of them", async () => {
  let told: Admission | undefined;
  const hearing = {
    ...subscriber,
    started: (_response: string, _tokens: number, _dropped: number, admission: Admission) => (told = admission),
  };
  build = async () => {
    const until = performance.now() + 3;
    while (performance.now() < until);
    return { ids: Int32Array.of(1), maxTokens: 9, dropped: 0 };
  };
  responses.start(request(), hearing);
  await settled();
  const first = inference.submitted[0]?.request as InferenceRequest;
  expect(first).toMatchObject({ class: "voice", tenant: "tenant-1", tenantWeight: 3, deadlines: { itlMs: 60, waitMs: 0 } });
  expect(first.deadlines.ttftMs).toBeLessThan(797.1);
  const late = 800 - first.deadlines.ttftMs;
  expect(told).toEqual({ ttftMs: expect.closeTo(400 + late, 6), itlMs: 50 });
  inference.admission = { waitMs: 70 };
  responses.start(request({ ttftMs: 900, itlMs: 70, waitMs: 5 }), hearing);
  await settled();
  expect(inference.submitted[1]?.request).toMatchObject({ deadlines: { itlMs: 70, waitMs: 5 }, tenantWeight: 3 });
  expect(told).toEqual({ waitMs: 70 });
  responses.start(request({ itlMs: 59 }), subscriber);
  await settled();
  expect(events).toEqual([["failed", "field_invalid", "itlMs is 59, but this origin's classes span 60 to 2000"]]);
});

test("a format is compiled before the engine is asked, and refused where it cannot be or its end is not its own", async () => {
  const format = { kind: "regex", text: "a+" } as const;
  responses.start(request({ format }), subscriber);
  responses.start(request(), subscriber);
  await settled();
  expect(inference.submitted.map(({ request: each }) => each.format)).toEqual([{ compiled: format }, undefined]);
  responses.start(request({ format: { kind: "regex", text: "bad" } }), subscriber);
  responses.start(request({ format, ignoreEos: true }), subscriber);
  await settled();
  const failed = events.filter(([what]) => what === "failed").map(([, code, message]) => [code, message]);
  expect(failed).toEqual(
    expect.arrayContaining([
      ["field_invalid", "bad format"],
      ["field_invalid", "format says where the answer may end: leave out minTokens and ignoreEos"],
    ]),
  );
});

test("more tokens at least than at most is refused with both numbers", async () => {
  responses.start(request({ minTokens: 10 }), subscriber);
  await settled();
  expect(events).toEqual([["failed", "field_invalid", "minTokens is 10, over the 9 that the answer may have"]]);
});

describe("cancelling", () => {
  test("before the engine has it: one DONE without tokens, and the engine is never asked", async () => {
    const response = responses.start(request(), subscriber);
    response.cancel();
    expect(events).toEqual([]);
    await settled();
    expect(events).toEqual([["done", expect.objectContaining({ seq: 0, reason: "cancelled", textBytes: 0, digest: 0 })]]);
    expect([inference.submitted, responses.count]).toEqual([[], 0]);
  });

  test("later: the engine is told, and its end is the answer's", async () => {
    const response = responses.start(request(), subscriber);
    await settled();
    listener().tokens(1, "a");
    response.cancel();
    expect([inference.cancelled, responses.count]).toEqual([[0], 1]);
    listener().finished({ ...end, seq: 1, reason: "cancelled" });
    expect(events.at(-1)).toEqual(["done", expect.objectContaining({ seq: 1, reason: "cancelled" })]);
  });

  test("by leaving: nobody is told, and the engine's slot is freed", async () => {
    const response = responses.start(request(), subscriber);
    await settled();
    response.abandon();
    listener().tokens(1, "a");
    listener().finished({ ...end, seq: 1, reason: "cancelled" });
    expect([events, inference.cancelled, responses.count]).toEqual([[["started", 3, 2]], [0], 0]);
  });
});

describe("failing", () => {
  test("what the engine refuses is told as it is, and never as started", async () => {
    inference.refusal = new MillraceError("overloaded", "256 wait", 1_000);
    responses.start(request(), subscriber);
    await settled();
    expect([events, responses.count]).toEqual([[["failed", "overloaded", "256 wait"]], 0]);
  });

  test("an engine that gives up is internal", async () => {
    responses.start(request(), subscriber);
    await settled();
    listener().failed("out of memory");
    listener().tokens(1, "late");
    expect(events).toEqual([
      ["started", 3, 2],
      ["failed", "internal", "out of memory"],
    ]);
  });

  test("a fault of ours is logged whole and told without its insides", async () => {
    build = () => Promise.reject(new TypeError("x is not a function"));
    responses.start(request(), subscriber);
    await settled();
    expect(events).toEqual([
      ["failed", "internal", expect.stringMatching(/^the origin failed on this request; its log has response [\w-]+$/)],
    ]);
    expect(lines).toEqual([expect.stringMatching(/^response [\w-]+ failed: TypeError: x is not a function\n/)]);
  });
});

describe("draining", () => {
  test("waits for what runs, and takes nothing new", async () => {
    responses.start(request(), subscriber);
    await settled();
    let drained = false;
    const drain = responses.drain(60_000).then(() => {
      drained = true;
    });
    expect(() => responses.start(request(), subscriber)).toThrow(expect.objectContaining({ code: "draining", retryAfterMs: 1_000 }));
    await settled();
    expect(drained).toBe(false);
    listener().finished(end);
    await drain;
  });

  test("cuts what is not done by its deadline", async () => {
    responses.start(request(), subscriber);
    await settled();
    await responses.drain(1);
    expect(events.at(-1)).toEqual(["failed", "draining", expect.stringContaining("not done within 1 ms")]);
    expect(inference.cancelled).toEqual([0]);
  });
});

test("metrics count by class, reason and code, and read the inference's load", async () => {
  metrics.watchInference(() => inference.load());
  responses.start(request(), subscriber);
  responses.start(request(), subscriber);
  await settled();
  for (const [index, { listener: one }] of inference.submitted.entries()) {
    one.tokens(1, "a");
    one.tokens(2, "b");
    if (index === 0) one.finished(end);
    else one.failed("no");
  }
  const text = (await metrics.scrape()).split("\n");
  expect(text).toEqual(
    expect.arrayContaining([
      'gen_ai_server_time_to_first_token_seconds_count{class="voice"} 2',
      'millrace_inter_token_latency_seconds_count{class="voice"} 2',
      'gen_ai_server_time_per_output_token_seconds_sum{class="voice"} 0.002',
      'gen_ai_server_time_to_first_token_seconds_count{class="chat"} 0',
      "millrace_prompt_tokens_total 6",
      "millrace_prefix_cache_hits_total 2",
      "millrace_generation_tokens_total 3",
      'millrace_request_success_total{finished_reason="stop"} 1',
      'millrace_request_failure_total{code="internal"} 1',
      "millrace_num_requests_running 2",
      "millrace_kv_cache_mapped_bytes 5",
      "millrace_kv_cache_max_bytes 10",
      'millrace_deadline_misses_total{cause="prefill"} 3',
      'millrace_deadline_misses_total{cause="reader"} 0',
    ]),
  );
});
