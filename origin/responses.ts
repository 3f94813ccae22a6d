/** The answers that live in this origin. A response outlives nothing yet: when its one subscriber leaves, it is cancelled. */
import { randomInt, randomUUID } from "node:crypto";
import type { ClassName } from "../shared/classes.js";
import { MillraceError } from "../shared/errors.js";
import type { Admission, ChatMessage, FinishReason, StartOptions, Timings, Usage } from "../shared/protocol.js";
import { bounds, samplingDefaults } from "./bounds.js";
import type { PromptBuilder } from "./chat/prompt.js";
import type { Turnstile } from "./chat/turnstile.js";
import type { Inference, InferenceEnd, InferenceHandle, InferenceListener, TokenLogprobs } from "./inference.js";
import { ResponseLog } from "./log.js";
import type { Metrics } from "./metrics.js";
import type { ServiceTerms } from "./terms.js";

export interface StartRequest {
  messages: readonly ChatMessage[];
  options: StartOptions;
  class: ClassName;
  tenant: string;
  /** Unique in the tenant. */
  user: string;
  /** Most tokens this session may ask for. */
  tokensMax: number;
}

/** Who is told. Calls come in the wire's order, never inside `start` or `cancel`, and end with exactly one of `done` or `failed`. */
export interface Subscriber {
  started(response: string, promptTokens: number, droppedTurns: number, admission: Admission): void;
  queued(place: number): void;
  tokens(seq: number, text: string, logprobs?: TokenLogprobs[]): void;
  done(end: Ending): void;
  failed(error: MillraceError): void;
}

export interface Ending {
  seq: number;
  reason: FinishReason;
  textBytes: number;
  digest: number;
  usage: Usage;
  timings: Timings;
}

/** What an answer needs of the origin around it. */
export interface Services {
  inference: Inference;
  turnstile: Turnstile;
  prompts: Pick<PromptBuilder, "build">;
  terms: ServiceTerms;
  metrics: Metrics;
  log: (line: string) => void;
}

export class Responses {
  readonly #live = new Set<Response>();
  #draining = false;
  #onEmpty: (() => void) | undefined;

  constructor(private readonly services: Services) {}

  get count(): number {
    return this.#live.size;
  }

  /** @throws MillraceError `draining`. */
  start(request: StartRequest, subscriber: Subscriber): Response {
    if (this.#draining) throw draining("this origin is stopping and takes nothing new");
    const response = new Response(this.services, request, subscriber, () => this.#ended(response));
    this.#live.add(response);
    return response;
  }

  /** Takes nothing new and resolves once all answers have ended; what still runs after `withinMs` is cut with `draining`. */
  async drain(withinMs: number): Promise<void> {
    this.#draining = true;
    if (this.#live.size === 0) return;
    const cut = setTimeout(() => {
      const error = draining(`this origin is stopping, and the answer was not done within ${withinMs} ms`);
      for (const response of this.#live) response.fail(error);
    }, withinMs);
    await new Promise<void>((resolve) => {
      this.#onEmpty = resolve;
    });
    clearTimeout(cut);
  }

  #ended(response: Response): void {
    this.#live.delete(response);
    if (this.#live.size === 0) this.#onEmpty?.();
  }
}

/** One answer: rendered and tokenized first, then the engine's, then over. */
export class Response {
  readonly id = randomUUID();
  readonly #log = new ResponseLog();
  readonly #receivedMs = performance.now();
  readonly #class: ClassName;
  #handle: InferenceHandle | undefined;
  #promptTokens = 0;
  /** From START to the engine's queue: rendering and tokenizing. */
  #preparedMs = 0;
  #lastTokenMs = 0;
  /** Cancelled before the engine had it: it never will. */
  #isCancelled = false;
  #over = false;

  constructor(
    private readonly services: Services,
    request: StartRequest,
    private subscriber: Subscriber | undefined,
    private readonly onEnd: () => void,
  ) {
    this.#class = request.class;
    this.#run(request).catch((error: unknown) => this.fail(this.#asMillraceError(error)));
  }

  /** Asks for the end; DONE tells when it is reached. An answer that the engine does not have yet ends now, without a token. */
  cancel(): void {
    if (this.#handle) {
      this.#handle.cancel();
      return;
    }
    this.#isCancelled = true;
    queueMicrotask(() => this.#finish({ seq: 0, reason: "cancelled", cachedTokens: 0, queueMs: 0, prefillMs: 0, decodeMs: 0 }));
  }

  /** Cancels without telling anyone: the subscriber is gone. */
  abandon(): void {
    this.subscriber = undefined;
    this.cancel();
  }

  /** Ends the answer for a reason of the origin's. */
  fail(error: MillraceError): void {
    if (this.#over) return;
    this.#over = true;
    this.#handle?.cancel();
    this.services.metrics.failed(error.code);
    this.subscriber?.failed(error);
    this.onEnd();
  }

  async #run({ messages, options, class: service, tenant, user, tokensMax }: StartRequest): Promise<void> {
    const { maxTokens, minTokens = 0, seed, stop = [], ignoreEos = false, logitBias = {}, logprobs, overflow = "refuse" } = options;
    const { tenantWeight, ...asked } = this.services.terms.of(service, tenant, options);
    if (options.format && (minTokens > 0 || ignoreEos))
      throw new MillraceError("field_invalid", "format says where the answer may end: leave out minTokens and ignoreEos");
    // A format may take as long as a long conversation does.
    const chars = messages.reduce((sum, [, content]) => sum + content.length, options.format ? bounds.tokenizeLongChars + 1 : 0);
    const prepared = await this.services.turnstile.run(`${tenant}\0${user}`, chars, async () => {
      if (this.#over || this.#isCancelled) return undefined;
      const prompt = await this.services.prompts.build(messages, { maxTokens, tokensMax, overflow });
      return { prompt, format: options.format && (await this.services.inference.compile(options.format)) };
    });
    if (!prepared || this.#over || this.#isCancelled) return;
    const { prompt, format } = prepared;
    if (minTokens > prompt.maxTokens)
      throw new MillraceError("field_invalid", `minTokens is ${minTokens}, over the ${prompt.maxTokens} that the answer may have`);
    const sampling = { ...samplingDefaults, ...pickSampling(options) };
    this.#promptTokens = prompt.ids.length;
    this.#preparedMs = performance.now() - this.#receivedMs;
    this.#handle = this.services.inference.submit(
      {
        ...sampling,
        prompt: prompt.ids,
        maxTokens: prompt.maxTokens,
        seed: seed ?? randomInt(2 ** 48 - 1),
        stop,
        minTokens,
        ignoreEos,
        logitBias,
        logprobs,
        format,
        class: service,
        // Promises count from START, the engine's from here.
        deadlines: { ...asked, ttftMs: Math.max(1, asked.ttftMs - this.#preparedMs) },
        tenant,
        tenantWeight,
      },
      this.#listener(),
    );
    this.services.metrics.taken(this.#promptTokens);
    this.subscriber?.started(this.id, this.#promptTokens, prompt.dropped, this.#sinceStart(this.#handle.admission));
  }

  #sinceStart(admission: Admission): Admission {
    return "waitMs" in admission ? admission : { ...admission, ttftMs: admission.ttftMs + this.#preparedMs };
  }

  #listener(): InferenceListener {
    return {
      queued: (place) => {
        if (!this.#over) this.subscriber?.queued(place);
      },
      tokens: (seq, text, logprobs) => this.#tokens(seq, text, logprobs),
      finished: (end) => this.#finish(end),
      failed: (why) => this.fail(new MillraceError("internal", why)),
    };
  }

  #tokens(seq: number, text: string, logprobs: TokenLogprobs[] | undefined): void {
    if (this.#over) return;
    const now = performance.now();
    if (this.#log.seq === 0) this.services.metrics.firstToken(this.#class, now - this.#receivedMs);
    else this.services.metrics.laterToken(this.#class, now - this.#lastTokenMs);
    this.#lastTokenMs = now;
    this.#log.append(seq, text);
    this.subscriber?.tokens(seq, text, logprobs);
  }

  #finish({ seq, reason, cachedTokens, queueMs, prefillMs, decodeMs }: InferenceEnd): void {
    if (this.#over) return;
    this.#over = true;
    const durationMs = performance.now() - this.#receivedMs;
    this.services.metrics.done(this.#class, { reason, cachedTokens, tokens: seq, durationMs, decodeMs });
    this.subscriber?.done({
      seq,
      reason,
      textBytes: this.#log.textBytes,
      digest: this.#log.digest,
      usage: { promptTokens: this.#promptTokens, cachedTokens, completionTokens: seq },
      timings: { queueMs: this.#preparedMs + queueMs, prefillMs, decodeMs },
    });
    this.onEnd();
  }

  #asMillraceError(error: unknown): MillraceError {
    if (error instanceof MillraceError) return error;
    this.services.log(`response ${this.id} failed: ${error instanceof Error ? error.stack : String(error)}`);
    return new MillraceError("internal", `the origin failed on this request; its log has response ${this.id}`);
  }
}

/** START's sampling options that were given; the rest are the defaults'. */
function pickSampling(options: StartOptions): Partial<Record<keyof typeof samplingDefaults, number>> {
  const names = Object.keys(samplingDefaults) as (keyof typeof samplingDefaults)[];
  return Object.fromEntries(names.filter((name) => options[name] !== undefined).map((name) => [name, options[name]]));
}

function draining(why: string): MillraceError {
  return new MillraceError("draining", why, bounds.retryAfterMs);
}
