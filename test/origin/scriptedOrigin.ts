/** An inference that does exactly what it is told, and an origin's answers around it, with a subscriber that takes everything down. */
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
import { MillraceError } from "../../shared/errors.js";
import type { Admission, Format } from "../../shared/protocol.js";

/** Takes requests down and lets the test speak for the engine. */
export class ScriptedInference implements Inference {
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
    return {
      running: this.submitted.length,
      waiting: 0,
      slots: 1,
      kvBytesMapped: 5,
      kvBytesHeld: 4,
      kvBytesMax: 10,
      misses: { prefill: 3, reader: 0 },
    };
  }
  async close(): Promise<void> {}
}

const terms = new ServiceTerms({ ...serviceClasses, voice: { ttftMs: 800, itlMs: 60, waitMs: 0 } }, new Map([["tenant-1", 3]]));

const epochs = { dead: undefined };
const atOnce = { flushEveryMs: 0 };

export const request = (options: StartRequest["options"] = {}): StartRequest => ({
  messages: [["user", "hi"]],
  options,
  class: "voice",
  owner: { tenant: "tenant-1", user: "user-1" },
  tokensMax: 50,
});

/** Lets what was awaited go on. */
export const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** How the engine ends an answer of three tokens. */
export const end = { seq: 3, reason: "stop", cachedTokens: 2, queueMs: 1, prefillMs: 2, decodeMs: 4 } as const;

export class ScriptedOrigin {
  readonly inference = new ScriptedInference();
  readonly metrics = new Metrics();
  readonly lines: string[] = [];
  /** What the subscriber was told. */
  events: unknown[][] = [];
  /** Added to the clock. */
  nowMs = 0;
  build = async (): Promise<{ ids: Int32Array; maxTokens: number; dropped: number }> => ({
    ids: Int32Array.of(1, 2, 3),
    maxTokens: 9,
    dropped: 2,
  });
  readonly responses = new Responses(
    {
      inference: this.inference,
      turnstile: new Turnstile(),
      prompts: { build: () => this.build() },
      isSpecial: (id) => id === 0,
      terms,
      metrics: this.metrics,
      clock: new FrameClock(),
      now: () => performance.now() + this.nowMs,
      log: (line) => this.lines.push(line),
    },
    "epoch-1",
  );
  readonly subscriber: Subscriber = {
    started: (_, promptTokens, dropped) => this.events.push(["started", promptTokens, dropped]),
    resumed: (_, seq) => this.events.push(["resumed", seq]),
    queued: (place) => this.events.push(["queued", place]),
    tokens: (seq, text, _flags, _ids, logprobs = []) => this.events.push(["tokens", seq, text, ...(logprobs.length > 0 ? [logprobs] : [])]),
    truncated: (seq, bytes) => this.events.push(["truncated", seq, bytes]),
    done: (ending) => this.events.push(["done", ending]),
    failed: (error) => this.events.push(["failed", error.code, error.message]),
    handedOff: (seq) => this.events.push(["handed off", seq]),
    isFull: () => false,
  };

  begin(asked: StartRequest, told: Subscriber = this.subscriber): Outcome {
    return this.responses.start(asked, epochs, told, atOnce);
  }

  /** Starts an answer that is new, or known by its key. */
  start(asked: StartRequest = request(), told: Subscriber = this.subscriber): { response: Response; subscription: Subscription } {
    const outcome = this.begin(asked, told);
    if (outcome.kind !== "subscribed") throw new Error(`the answer was ${outcome.kind}`);
    return outcome;
  }

  resume(response: string, seq: number, creditSeq = 1e9): Outcome {
    const delivery = { from: seq, creditSeq, flushEveryMs: 0, wantsIds: false };
    return this.responses.resume(request().owner, { epoch: "epoch-1", response }, epochs, this.subscriber, delivery);
  }

  listener(index = 0): InferenceListener {
    return this.inference.submitted[index]?.listener as InferenceListener;
  }

  /** The engine releases one more token. */
  say(seq: number, text: string, more: { logprobs?: TokenLogprobs[] } = {}, index = 0): void {
    this.listener(index).tokens({ seq, text, ids: [seq + 100], ends: [new TextEncoder().encode(text).length], ...more });
  }
}
