/** An answer from START to its end, with an inference that does exactly what it is told. */
import { beforeEach, describe, expect, test } from "vitest";
import { bounds } from "../../origin/bounds.js";
import { Turnstile } from "../../origin/chat/turnstile.js";
import type { Inference, InferenceHandle, InferenceListener, InferenceRequest, TokenLogprobs } from "../../origin/inference.js";
import { Metrics } from "../../origin/metrics.js";
import { FrameClock } from "../../origin/pacing.js";
import type { StartRequest } from "../../origin/prepare.js";
import type { Response } from "../../origin/response.js";
import { type Outcome, Responses } from "../../origin/responses.js";
import type { Subscriber, Subscription } from "../../origin/subscription.js";
import { ServiceTerms } from "../../origin/terms.js";
import { serviceClasses } from "../../shared/classes.js";
import { Digest } from "../../shared/digest.js";
import { MillraceError } from "../../shared/errors.js";
import { limits } from "../../shared/limits.js";
import type { Admission, Format } from "../../shared/protocol.js";

/** Takes requests down and lets the test speak for the engine. */
class ScriptedInference implements Inference {
  readonly kind = "simulated";
  readonly model = { name: "scripted", contextTokens: 100, runsOn: "a script" };
  readonly cancelled: number[] = [];
  readonly held: string[] = [];
  submitted: { request: InferenceRequest; listener: InferenceListener }[] = [];
  refusal: MillraceError | undefined;
  admission: Admission = { ttftMs: 400, itlMs: 50 };

  submit(request: InferenceRequest, listener: InferenceListener): InferenceHandle {
    if (this.refusal) throw this.refusal;
    const index = this.submitted.push({ request, listener }) - 1;
    return {
      admission: this.admission,
      cancel: () => this.cancelled.push(index),
      pause: () => this.held.push(`pause ${index}`),
      resume: () => this.held.push(`resume ${index}`),
    };
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
let nowMs: number;
let build: () => Promise<{ ids: Int32Array; maxTokens: number; dropped: number }>;

beforeEach(() => {
  inference = new ScriptedInference();
  metrics = new Metrics();
  lines = [];
  events = [];
  build = async () => ({ ids: Int32Array.of(1, 2, 3), maxTokens: 9, dropped: 2 });
  nowMs = 0;
  responses = new Responses(
    {
      inference,
      turnstile: new Turnstile(),
      prompts: { build: () => build() },
      isSpecial: (id) => id === 0,
      terms,
      metrics,
      clock: new FrameClock(),
      now: () => performance.now() + nowMs,
      log: (line) => lines.push(line),
    },
    "epoch-1",
  );
});

const subscriber: Subscriber = {
  started: (_, promptTokens, dropped) => events.push(["started", promptTokens, dropped]),
  resumed: (_, seq) => events.push(["resumed", seq]),
  queued: (place) => events.push(["queued", place]),
  tokens: (seq, text, _flags, _ids, logprobs = []) => events.push(["tokens", seq, text, ...(logprobs.length > 0 ? [logprobs] : [])]),
  truncated: (seq, bytes) => events.push(["truncated", seq, bytes]),
  done: (ending) => events.push(["done", ending]),
  failed: (error) => events.push(["failed", error.code, error.message]),
  handedOff: (seq) => events.push(["handed off", seq]),
  isFull: () => false,
};
const request = (options: StartRequest["options"] = {}): StartRequest => ({
  messages: [["user", "hi"]],
  options,
  class: "voice",
  owner: { tenant: "tenant-1", user: "user-1" },
  tokensMax: 50,
});
const epochs = { dead: undefined };
const atOnce = { flushEveryMs: 0 };
const begin = (asked: StartRequest, told: Subscriber = subscriber): Outcome => responses.start(asked, epochs, told, atOnce);

/** Starts an answer that is new, or known by its key. */
function start(asked: StartRequest = request(), told: Subscriber = subscriber): { response: Response; subscription: Subscription } {
  const outcome = begin(asked, told);
  if (outcome.kind !== "subscribed") throw new Error(`the answer was ${outcome.kind}`);
  return outcome;
}

const listener = (index = 0): InferenceListener => inference.submitted[index]?.listener as InferenceListener;
/** The engine releases one more token. */
function say(seq: number, text: string, more: { logprobs?: TokenLogprobs[] } = {}, index = 0): void {
  listener(index).tokens({ seq, text, ids: [seq + 100], ends: [new TextEncoder().encode(text).length], ...more });
}
/** Lets what was awaited go on. */
const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
const end = { seq: 3, reason: "stop", cachedTokens: 2, queueMs: 1, prefillMs: 2, decodeMs: 4 } as const;

test("events go through in order, and DONE has digest, usage and timings", async () => {
  start();
  expect(events).toEqual([]);
  await settled();
  listener().queued(2);
  say(1, "w\u00e4");
  say(2, "ter");
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
        usage: { promptTokens: 3, cachedTokens: 2, completionTokens: 3, continuedTokens: 0 },
        timings: {
          ...{ queueMs: expect.any(Number), prefillMs: 2, decodeMs: 4, parkedMs: 0 },
          ...{ outboxMs: expect.any(Number), gapMs: expect.any(Number), gapCause: expect.stringMatching(/engine|outbox/) },
        },
        slo: { lateTokens: 0, good: true },
      },
    ],
  ]);
  const { timings } = (events.at(-1) as [string, { timings: { queueMs: number } }])[1];
  expect(timings.queueMs).toBeGreaterThan(1);
  expect(responses.count).toBe(0);
});

test("what START leaves open is sampled with the documented defaults and a seed drawn anew", async () => {
  start();
  start(request({ temperature: 0, topK: 5, seed: 42, stop: ["x"] }));
  start();
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
  start(request({ minTokens: 9, ignoreEos: true, logitBias: { 5: -1 }, logprobs: 2 }));
  start();
  await settled();
  expect(inference.submitted[0]?.request).toMatchObject({ minTokens: 9, ignoreEos: true, logitBias: { 5: -1 }, logprobs: 2 });
  expect(inference.submitted[1]?.request).toMatchObject({ minTokens: 0, ignoreEos: false, logitBias: {}, logprobs: undefined });
  const logprobs = [{ id: 3, logprob: -1, top: [] }];
  say(1, "a", { logprobs });
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
  start(request(), hearing);
  await settled();
  const first = inference.submitted[0]?.request as InferenceRequest;
  expect(first).toMatchObject({ class: "voice", tenant: "tenant-1", tenantWeight: 3, deadlines: { itlMs: 60, waitMs: 0 } });
  expect(first.deadlines.ttftMs).toBeLessThan(797.1);
  const late = 800 - first.deadlines.ttftMs;
  expect(told).toEqual({ ttftMs: expect.closeTo(400 + late, 6), itlMs: 50 });
  inference.admission = { waitMs: 70 };
  start(request({ ttftMs: 900, itlMs: 70, waitMs: 5 }), hearing);
  await settled();
  expect(inference.submitted[1]?.request).toMatchObject({ deadlines: { itlMs: 70, waitMs: 5 }, tenantWeight: 3 });
  expect(told).toEqual({ waitMs: 70 });
  start(request({ itlMs: 59 }));
  await settled();
  expect(events).toEqual([["failed", "field_invalid", "itlMs is 59, but this origin's classes span 60 to 2000"]]);
});

test("a format is compiled before the engine is asked, and refused where it cannot be or its end is not its own", async () => {
  const format = { kind: "regex", text: "a+" } as const;
  start(request({ format }));
  start();
  await settled();
  expect(inference.submitted.map(({ request: each }) => each.format)).toEqual([{ compiled: format }, undefined]);
  start(request({ format: { kind: "regex", text: "bad" } }));
  start(request({ format, ignoreEos: true }));
  await settled();
  const failed = events.filter(([what]) => what === "failed").map(([, code, message]) => [code, message]);
  expect(failed).toEqual(
    expect.arrayContaining([
      ["field_invalid", "bad format"],
      ["field_invalid", "format says where the answer may begin and end: leave out minTokens, ignoreEos and continueIds"],
    ]),
  );
});

test("more tokens at least than at most is refused with both numbers", async () => {
  start(request({ minTokens: 10 }));
  await settled();
  expect(events).toEqual([["failed", "field_invalid", "minTokens is 10, over the 9 that the answer may have"]]);
});

describe("cancelling", () => {
  test("before the engine has it: one DONE without tokens, and the engine is never asked", async () => {
    const { response } = start();
    response.cancel();
    expect(events).toEqual([]);
    await settled();
    expect(events).toEqual([["done", expect.objectContaining({ seq: 0, reason: "cancelled", textBytes: 0, digest: 0 })]]);
    expect([inference.submitted, responses.count]).toEqual([[], 0]);
  });

  test("later: the engine is told, and its end is the answer's", async () => {
    const { response } = start();
    await settled();
    say(1, "a");
    response.cancel();
    expect([inference.cancelled, responses.count]).toEqual([[0], 1]);
    listener().finished({ ...end, seq: 1, reason: "cancelled" });
    expect(events.at(-1)).toEqual(["done", expect.objectContaining({ seq: 1, reason: "cancelled" })]);
  });

  test("by leaving for longer than the grace: the engine's slot is freed, and the end is known", async () => {
    const { response, subscription } = start(request({ graceMs: 5_000 }));
    await settled();
    say(1, "a");
    response.unsubscribe(subscription);
    nowMs = 4_000;
    responses.tick();
    say(2, "b");
    expect(inference.cancelled).toEqual([]);
    nowMs = 5_100;
    responses.tick();
    listener().finished({ ...end, seq: 2, reason: "cancelled" });
    expect([events.slice(1), inference.cancelled, responses.count]).toEqual([[["tokens", 1, "a"]], [0], 0]);
  });

  test("somebody who comes back within it goes on", async () => {
    const { response, subscription } = start(request({ graceMs: 5_000 }));
    await settled();
    response.unsubscribe(subscription);
    say(1, "a");
    nowMs = 4_000;
    resume(response.id, 0);
    await settled();
    nowMs = 60_000;
    responses.tick();
    expect([events.slice(1), inference.cancelled]).toEqual([
      [
        ["resumed", 1],
        ["tokens", 1, "a"],
      ],
      [],
    ]);
  });
});

function resume(response: string, seq: number, creditSeq = 1e9): Outcome {
  const delivery = { from: seq, creditSeq, flushEveryMs: 0, wantsIds: false };
  return responses.resume(request().owner, { epoch: "epoch-1", response }, epochs, subscriber, delivery);
}

describe("credit", () => {
  test("an answer that has used it up is parked, and goes on with more", async () => {
    const { response, subscription } = start(request({ creditSeq: 1 }));
    await settled();
    expect(inference.held).toEqual([]);
    say(1, "a");
    expect(inference.held).toEqual(["pause 0"]);
    // The token of the step under way.
    say(2, "b");
    expect(events.at(-1)).toEqual(["tokens", 1, "a"]);
    nowMs = 300;
    response.credit(subscription, 5);
    expect([inference.held, events.at(-1)]).toEqual([
      ["pause 0", "resume 0"],
      ["tokens", 2, "b"],
    ]);
    listener().finished({ ...end, seq: 2 });
    expect(events.at(-1)).toMatchObject(["done", { timings: { parkedMs: expect.closeTo(300, -2), gapCause: expect.any(String) } }]);
  });

  test("parked for too long, it ends with the reason", async () => {
    start(request({ creditSeq: 1 }));
    await settled();
    say(1, "a");
    nowMs = limits.parkedMs + 100;
    responses.tick();
    expect(events.at(-1)).toEqual(["failed", "credit_exhausted", expect.stringContaining("credit beyond token 1 did not come within")]);
    expect(inference.cancelled).toEqual([0]);
  });

  test("a tenant has so many in the park", async () => {
    for (let index = 0; index <= limits.parkedOfTenantMax; index++) start(request({ creditSeq: 0 }));
    await settled();
    expect(events.filter(([what]) => what === "failed")).toEqual([
      [
        "failed",
        "credit_exhausted",
        `credit ended with token 0, and ${limits.parkedOfTenantMax} answers of this tenant are parked already`,
      ],
    ]);
    start({ ...request({ creditSeq: 0 }), owner: { tenant: "tenant-2", user: "user-1" } });
    await settled();
    expect(events.filter(([what]) => what === "failed")).toHaveLength(1);
  });
});

describe("what is kept", () => {
  test("the text for two minutes, then how it ended, then nothing", async () => {
    const { response } = start(request({ key: "k" }));
    await settled();
    say(1, "a");
    listener().finished({ ...end, seq: 1 });
    nowMs = bounds.logsKeptMs - 100;
    responses.tick();
    expect(resume(response.id, 0).kind).toBe("subscribed");
    await settled();
    expect(events.slice(-3)).toEqual([
      ["resumed", 1],
      ["tokens", 1, "a"],
      ["done", expect.anything()],
    ]);
    nowMs = bounds.logsKeptMs + 100;
    responses.tick();
    expect(resume(response.id, 0)).toEqual({ kind: "expired", seq: 1, reason: "stop" });
    expect(begin(request({ key: "k" }))).toEqual({ kind: "expired", seq: 1, reason: "stop" });
    nowMs += bounds.tombstonesKeptMs + 100;
    responses.tick();
    expect(resume(response.id, 0)).toEqual({ kind: "expired", seq: 0, reason: "unknown" });
  });

  // What was refused has no answer: the same key may ask again.
  test("a refusal is forgotten", async () => {
    inference.refusal = new MillraceError("overloaded", "256 wait", 1_000);
    start(request({ key: "k" }));
    await settled();
    inference.refusal = undefined;
    start(request({ key: "k" }));
    await settled();
    expect(events).toEqual([
      ["failed", "overloaded", "256 wait"],
      ["started", 3, 2],
    ]);
  });

  test("the oldest texts go first where there are too many bytes of them", async () => {
    const long = "x".repeat(1 << 20);
    const ids: string[] = [];
    for (let index = 0; index < 70; index++) {
      ids.push(start().response.id);
      await settled();
      say(1, long, {}, index);
      listener(index).finished({ ...end, seq: 1 });
    }
    expect(resume(ids[0] as string, 0).kind).toBe("expired");
    expect(resume(ids.at(-1) as string, 0).kind).toBe("subscribed");
  });
});

describe("restarting", () => {
  test("the tokens brought along count as generated, and are not told again", async () => {
    start(request({ key: "k", attempt: 2, continueIds: [101, 102] }));
    await settled();
    expect(inference.submitted[0]?.request.continueIds).toEqual(Int32Array.of(101, 102));
    listener().tokens({ seq: 2, text: "ab", ids: [101, 102], ends: [1, 2] });
    say(3, "c");
    listener().finished(end);
    expect(events.slice(1)).toEqual([
      ["tokens", 3, "c"],
      ["done", expect.objectContaining({ textBytes: 3, usage: expect.objectContaining({ continuedTokens: 2, completionTokens: 3 }) })],
    ]);
    expect((await metrics.scrape()).split("\n")).toContain("millrace_generation_tokens_total 1");
  });

  test.each([
    ["special ones", { continueIds: [101, 0] }, "continueIds has the special token 0, which no answer contains"],
    ["more than there may be", { continueIds: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] }, "continueIds has 10 tokens, over the 9"],
  ])("%s are refused", async (_, options, sentence) => {
    start(request(options));
    await settled();
    expect(events).toEqual([["failed", "field_invalid", expect.stringContaining(sentence)]]);
  });

  test("a higher attempt replaces a lower one, which is cancelled", async () => {
    start(request({ key: "k" }));
    await settled();
    start(request({ key: "k", attempt: 2 }));
    expect(inference.cancelled).toEqual([0]);
    start(request({ key: "k", attempt: 1 }));
    await settled();
    expect([inference.submitted.length, responses.count]).toEqual([2, 2]);
  });
});

describe("failing", () => {
  test("what the engine refuses is told as it is, and never as started", async () => {
    inference.refusal = new MillraceError("overloaded", "256 wait", 1_000);
    start();
    await settled();
    expect([events, responses.count]).toEqual([[["failed", "overloaded", "256 wait"]], 0]);
  });

  test("an engine that gives up is internal", async () => {
    start();
    await settled();
    listener().failed("out of memory");
    say(1, "late");
    expect(events).toEqual([
      ["started", 3, 2],
      ["failed", "internal", "out of memory"],
    ]);
  });

  test("a fault of ours is logged whole and told without its insides", async () => {
    build = () => Promise.reject(new TypeError("x is not a function"));
    start();
    await settled();
    expect(events).toEqual([
      ["failed", "internal", expect.stringMatching(/^the origin failed on this request; its log has response [\w-]+$/)],
    ]);
    expect(lines).toEqual([expect.stringMatching(/^response [\w-]+ failed: TypeError: x is not a function\n/)]);
  });
});

describe("draining", () => {
  test("waits for what runs, and takes nothing new", async () => {
    start();
    await settled();
    let drained = false;
    const drain = responses.drain(60_000).then(() => {
      drained = true;
    });
    expect(() => begin(request())).toThrow(expect.objectContaining({ code: "draining", retryAfterMs: 1_000 }));
    await settled();
    expect(drained).toBe(false);
    listener().finished(end);
    await drain;
  });

  test("hands off what is not done by its deadline, with the token it has come to", async () => {
    start();
    await settled();
    say(1, "a");
    await responses.drain(1);
    expect(events.at(-1)).toEqual(["handed off", 1]);
    expect(inference.cancelled).toEqual([0]);
  });
});

test("metrics count by class, reason and code, and read the inference's load", async () => {
  metrics.watchInference(() => inference.load());
  start();
  start();
  await settled();
  for (const [index, { listener: one }] of inference.submitted.entries()) {
    one.tokens({ seq: 1, text: "a", ids: [5], ends: [1] });
    one.tokens({ seq: 2, text: "b", ids: [6], ends: [1] });
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
