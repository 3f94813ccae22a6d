/** An answer from START to its end, with an inference that does exactly what it is told. */
import { beforeEach, describe, expect, test } from "vitest";
import type { InferenceRequest } from "../../origin/inference.js";
import { Digest } from "../../shared/digest.js";
import { MillraceError } from "../../shared/errors.js";
import type { Admission } from "../../shared/protocol.js";
import { end, request, ScriptedOrigin, settled } from "./scriptedOrigin.js";

let origin: ScriptedOrigin;
beforeEach(() => {
  origin = new ScriptedOrigin();
});

test("events go through in order, and DONE has digest, usage and timings", async () => {
  origin.start();
  expect(origin.events).toEqual([]);
  await settled();
  origin.listener().queued(2);
  origin.say(1, "w\u00e4");
  origin.say(2, "ter");
  origin.listener().finished(end);
  const digest = new Digest();
  digest.update(new TextEncoder().encode("w\u00e4ter"));
  expect(origin.events).toEqual([
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
  const { timings } = (origin.events.at(-1) as [string, { timings: { queueMs: number } }])[1];
  expect(timings.queueMs).toBeGreaterThan(1);
  expect(origin.responses.count).toBe(0);
});

test("what START leaves open is sampled with the documented defaults and a seed drawn anew", async () => {
  origin.start();
  origin.start(request({ temperature: 0, topK: 5, seed: 42, stop: ["x"] }));
  origin.start();
  await settled();
  const [first, second, third] = origin.inference.submitted.map((one) => one.request) as [
    InferenceRequest,
    InferenceRequest,
    InferenceRequest,
  ];
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
  origin.start(request({ minTokens: 9, ignoreEos: true, logitBias: { 5: -1 }, logprobs: 2 }));
  origin.start();
  await settled();
  expect(origin.inference.submitted[0]?.request).toMatchObject({ minTokens: 9, ignoreEos: true, logitBias: { 5: -1 }, logprobs: 2 });
  expect(origin.inference.submitted[1]?.request).toMatchObject({ minTokens: 0, ignoreEos: false, logitBias: {}, logprobs: undefined });
  const logprobs = [{ id: 3, logprob: -1, top: [] }];
  origin.say(1, "a", { logprobs });
  expect(origin.events.at(-1)).toEqual(["tokens", 1, "a", logprobs]);
});

// The reader counts from START, the engine from when it is asked: what tokenizing took is taken off, and put on again in what is told.
test("deadlines are the class's or the START's own, from START on, and STARTED says what was promised of them", async () => {
  let told: Admission | undefined;
  const hearing = {
    ...origin.subscriber,
    started: (_response: string, _tokens: number, _dropped: number, admission: Admission) => (told = admission),
  };
  origin.build = async () => {
    const until = performance.now() + 3;
    while (performance.now() < until);
    return { ids: Int32Array.of(1), maxTokens: 9, dropped: 0 };
  };
  origin.start(request(), hearing);
  await settled();
  const first = origin.inference.submitted[0]?.request as InferenceRequest;
  expect(first).toMatchObject({ class: "voice", tenant: "tenant-1", tenantWeight: 3, deadlines: { itlMs: 60, waitMs: 0 } });
  expect(first.deadlines.ttftMs).toBeLessThan(797.1);
  const late = 800 - first.deadlines.ttftMs;
  expect(told).toEqual({ ttftMs: expect.closeTo(400 + late, 6), itlMs: 50 });
  origin.inference.admission = { waitMs: 70 };
  origin.start(request({ ttftMs: 900, itlMs: 70, waitMs: 5 }), hearing);
  await settled();
  expect(origin.inference.submitted[1]?.request).toMatchObject({ deadlines: { itlMs: 70, waitMs: 5 }, tenantWeight: 3 });
  expect(told).toEqual({ waitMs: 70 });
  origin.start(request({ itlMs: 59 }));
  await settled();
  expect(origin.events).toEqual([["failed", "field_invalid", "itlMs is 59, but this origin's classes span 60 to 2000"]]);
});

test("a format is compiled before the engine is asked, and refused where it cannot be or its end is not its own", async () => {
  const format = { kind: "regex", text: "a+" } as const;
  origin.start(request({ format }));
  origin.start();
  await settled();
  expect(origin.inference.submitted.map(({ request: each }) => each.format)).toEqual([{ compiled: format }, undefined]);
  origin.start(request({ format: { kind: "regex", text: "bad" } }));
  origin.start(request({ format, ignoreEos: true }));
  await settled();
  const failed = origin.events.filter(([what]) => what === "failed").map(([, code, message]) => [code, message]);
  expect(failed).toEqual(
    expect.arrayContaining([
      ["field_invalid", "bad format"],
      ["field_invalid", "format says where the answer may begin and end: leave out minTokens, ignoreEos and continueIds"],
    ]),
  );
});

test("more tokens at least than at most is refused with both numbers", async () => {
  origin.start(request({ minTokens: 10 }));
  await settled();
  expect(origin.events).toEqual([["failed", "field_invalid", "minTokens is 10, over the 9 that the answer may have"]]);
});

describe("cancelling", () => {
  test("before the engine has it: one DONE without tokens, and the engine is never asked", async () => {
    const { response } = origin.start();
    response.cancel();
    expect(origin.events).toEqual([]);
    await settled();
    expect(origin.events).toEqual([["done", expect.objectContaining({ seq: 0, reason: "cancelled", textBytes: 0, digest: 0 })]]);
    expect([origin.inference.submitted, origin.responses.count]).toEqual([[], 0]);
  });

  test("later: the engine is told, and its end is the answer's", async () => {
    const { response } = origin.start();
    await settled();
    origin.say(1, "a");
    response.cancel();
    expect([origin.inference.cancelled, origin.responses.count]).toEqual([[0], 1]);
    origin.listener().finished({ ...end, seq: 1, reason: "cancelled" });
    expect(origin.events.at(-1)).toEqual(["done", expect.objectContaining({ seq: 1, reason: "cancelled" })]);
  });

  test("by leaving for longer than the grace: the engine's slot is freed, and the end is known", async () => {
    const { response, subscription } = origin.start(request({ graceMs: 5_000 }));
    await settled();
    origin.say(1, "a");
    response.unsubscribe(subscription);
    origin.nowMs = 4_000;
    origin.responses.tick();
    origin.say(2, "b");
    expect(origin.inference.cancelled).toEqual([]);
    origin.nowMs = 5_100;
    origin.responses.tick();
    origin.listener().finished({ ...end, seq: 2, reason: "cancelled" });
    expect([origin.events.slice(1), origin.inference.cancelled, origin.responses.count]).toEqual([[["tokens", 1, "a"]], [0], 0]);
  });

  test("somebody who comes back within it goes on", async () => {
    const { response, subscription } = origin.start(request({ graceMs: 5_000 }));
    await settled();
    response.unsubscribe(subscription);
    origin.say(1, "a");
    origin.nowMs = 4_000;
    origin.resume(response.id, 0);
    await settled();
    origin.nowMs = 60_000;
    origin.responses.tick();
    expect([origin.events.slice(1), origin.inference.cancelled]).toEqual([
      [
        ["resumed", 1],
        ["tokens", 1, "a"],
      ],
      [],
    ]);
  });
});

describe("failing", () => {
  test("what the engine refuses is told as it is, and never as started", async () => {
    origin.inference.refusal = new MillraceError("overloaded", "256 wait", 1_000);
    origin.start();
    await settled();
    expect([origin.events, origin.responses.count]).toEqual([[["failed", "overloaded", "256 wait"]], 0]);
  });

  test("an engine that gives up is internal", async () => {
    origin.start();
    await settled();
    origin.listener().failed("out of memory");
    origin.say(1, "late");
    expect(origin.events).toEqual([
      ["started", 3, 2],
      ["failed", "internal", "out of memory"],
    ]);
  });

  test("a fault of ours is logged whole and told without its insides", async () => {
    origin.build = () => Promise.reject(new TypeError("x is not a function"));
    origin.start();
    await settled();
    expect(origin.events).toEqual([
      ["failed", "internal", expect.stringMatching(/^the origin failed on this request; its log has response [\w-]+$/)],
    ]);
    expect(origin.lines).toEqual([expect.stringMatching(/^response [\w-]+ failed: TypeError: x is not a function\n/)]);
  });
});

describe("draining", () => {
  test("waits for what runs, and takes nothing new", async () => {
    origin.start();
    await settled();
    let drained = false;
    const drain = origin.responses.drain(60_000).then(() => {
      drained = true;
    });
    expect(() => origin.begin(request())).toThrow(expect.objectContaining({ code: "draining", retryAfterMs: 1_000 }));
    await settled();
    expect(drained).toBe(false);
    origin.listener().finished(end);
    await drain;
  });

  test("hands off what is not done by its deadline, with the token it has come to", async () => {
    origin.start();
    await settled();
    origin.say(1, "a");
    await origin.responses.drain(1);
    expect(origin.events.at(-1)).toEqual(["handed off", 1]);
    expect(origin.inference.cancelled).toEqual([0]);
  });
});

test("metrics count by class, reason and code, and read the origin.inference's load", async () => {
  origin.metrics.watchInference(() => origin.inference.load());
  origin.start();
  origin.start();
  await settled();
  for (const [index, { listener: one }] of origin.inference.submitted.entries()) {
    one.tokens({ seq: 1, text: "a", ids: [5], ends: [1] });
    one.tokens({ seq: 2, text: "b", ids: [6], ends: [1] });
    if (index === 0) one.finished(end);
    else one.failed("no");
  }
  const text = (await origin.metrics.scrape()).split("\n");
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
      "millrace_kv_cache_held_bytes 4",
      "millrace_kv_cache_max_bytes 10",
      'millrace_deadline_misses_total{cause="prefill"} 3',
      'millrace_deadline_misses_total{cause="reader"} 0',
    ]),
  );
});
