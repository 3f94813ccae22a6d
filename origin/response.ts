/**
 * One answer: rendered and tokenized first, then the engine's, then over and kept for a while. It knows no socket: whoever follows it is a
 * subscription (subscription.ts), and that nobody does ends it only after its grace.
 */
import { randomInt, randomUUID } from "node:crypto";
import { classDelivery } from "../shared/classes.js";
import { type ErrorCode, MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import type { Admission, ChatMessage, FinishReason, Slo, Timings, Usage } from "../shared/protocol.js";
import { bounds } from "./bounds.js";
import { Durations } from "./durations.js";
import type { InferenceEnd, InferenceHandle, InferenceListener, Released } from "./inference.js";
import { ResponseLog } from "./log.js";
import { type Prepared, prepare, type StartRequest } from "./prepare.js";
import type { Services } from "./responses.js";
import { type Subscriber, Subscription, type SubscriptionOptions } from "./subscription.js";

/** How a whole answer ended; what is one subscriber's own in DONE is the subscription's. */
export interface Ending {
  seq: number;
  reason: FinishReason;
  textBytes: number;
  digest: number;
  usage: Usage;
  timings: Timings;
  slo: Slo;
}

/** How it is with an answer: with `ended` its last word stands. */
type Phase = "preparing" | "running" | "ended";
type LastWord = { kind: "done"; end: Ending } | { kind: "failed"; error: MillraceError } | { kind: "handed_off" };

/** What an answer tells of its life. */
export interface ResponseEvents {
  /** Whether its tenant may have one more answer parked. */
  mayPark(response: Response): boolean;
  parked(response: Response, isParked: boolean): void;
  ended(response: Response): void;
}

export class Response implements InferenceListener {
  readonly id = randomUUID();
  readonly #log = new ResponseLog();
  readonly #subscriptions = new Set<Subscription>();
  readonly #durations: Durations;
  readonly #graceMs: number;
  readonly #continuedTokens: number;
  #phase: Phase = "preparing";
  #lastWord: LastWord | undefined;
  #handle: InferenceHandle | undefined;
  #prepared: Prepared | undefined;
  /** From START to the engine's queue: rendering and tokenizing. */
  #preparedMs = 0;
  #creditSeq = 0;
  #parkedSinceMs: number | undefined;
  #detachedSinceMs: number | undefined;
  #truncated: { seq: number; textBytes: number } | undefined;

  constructor(
    private readonly services: Services,
    readonly request: StartRequest,
    private readonly events: ResponseEvents,
  ) {
    const { class: service, options } = request;
    this.#durations = new Durations(services.now());
    this.#continuedTokens = options.continueIds?.length ?? 0;
    this.#graceMs = Math.min(options.graceMs ?? Number.POSITIVE_INFINITY, classDelivery[service].graceMs);
    this.#run().catch((error: unknown) => this.fail(this.#asMillraceError(error)));
  }

  get isEnded(): boolean {
    return this.#phase === "ended";
  }

  /** The inference took it. */
  get wasTaken(): boolean {
    return this.#handle !== undefined;
  }

  /** The last released token. */
  get seq(): number {
    return this.#log.seq;
  }

  /** DONE's reason, or an error's code. */
  get reason(): FinishReason | ErrorCode | "handed_off" {
    if (this.#lastWord?.kind === "done") return this.#lastWord.end.reason;
    return this.#lastWord?.kind === "failed" ? this.#lastWord.error.code : "handed_off";
  }

  /** Memory that keeping it takes, roughly. */
  get bytes(): number {
    return this.#log.bytes + this.request.messages.reduce((sum, [, content]) => sum + 2 * content.length, 0);
  }

  /** The conversation with this answer in it, as far as it is not truncated. */
  get conversation(): ChatMessage[] {
    const text = this.#log.beginning(this.#truncated?.textBytes ?? this.#log.textBytes);
    return text === "" ? [...this.request.messages] : [...this.request.messages, ["assistant", text]];
  }

  /**
   * Follows the answer, from the token after `from` on. The subscriber is told the first thing in a later turn of the loop.
   * @throws MillraceError `subscribers_exhausted`; `field_invalid` where `from` has not been released yet.
   */
  subscribe(subscriber: Subscriber, options: SubscriptionOptions): Subscription {
    const following = [...this.#subscriptions].filter((each) => !each.isOver).length;
    if (following >= limits.subscribersMax)
      throw new MillraceError("subscribers_exhausted", `${following} sockets follow this answer already`, bounds.retryAfterMs);
    if (options.from > Math.max(this.#log.seq, this.#continuedTokens))
      throw new MillraceError("field_invalid", `seq is ${options.from}, but this answer has come to token ${this.#log.seq}`);
    const subscription = new Subscription(subscriber, this.#log, options, this.services.clock, this.services.now);
    this.#subscriptions.add(subscription);
    this.#detachedSinceMs = undefined;
    this.#raiseCredit(subscription.creditSeq);
    if (this.#phase !== "preparing" || this.#lastWord) queueMicrotask(() => this.#catchUp(subscription));
    return subscription;
  }

  /** Its socket is gone. */
  unsubscribe(subscription: Subscription): void {
    subscription.close();
    this.#subscriptions.delete(subscription);
    if ([...this.#subscriptions].every((each) => each.isOver)) this.#detachedSinceMs = this.services.now();
  }

  credit(subscription: Subscription, seqMax: number): void {
    subscription.credit(seqMax);
    this.#raiseCredit(seqMax);
  }

  /** Asks for the end; DONE tells when it is reached. An answer that the engine does not have yet ends now, without a token. */
  cancel(): void {
    if (this.#phase === "ended") return;
    if (this.#handle) {
      this.#handle.cancel();
      return;
    }
    this.#phase = "ended";
    queueMicrotask(() => this.finished({ seq: 0, reason: "cancelled", cachedTokens: 0, queueMs: 0, prefillMs: 0, decodeMs: 0 }));
  }

  /** The answer's user heard so much of it: it ends there. */
  truncate(textBytes: number): void {
    const cut = this.#log.cut(Math.min(textBytes, this.#truncated?.textBytes ?? textBytes));
    this.#truncated = cut;
    for (const { subscriber } of this.#subscriptions) subscriber.truncated(cut.seq, cut.textBytes);
    this.cancel();
  }

  /** Says its DONE again to a subscriber that had it. */
  repeatEnd(subscription: Subscription): void {
    if (this.#lastWord?.kind === "done" && subscription.isOver) this.#sayDone(subscription, this.#lastWord.end);
  }

  /** Ends the answer for a reason of the origin's. */
  fail(error: MillraceError): void {
    if (this.#lastWord) return;
    this.services.metrics.failed(error.code);
    this.#end({ kind: "failed", error });
  }

  /** Stops here, to be continued elsewhere. */
  handOff(): void {
    if (!this.#lastWord) this.#end({ kind: "handed_off" });
  }

  /** Ends what nobody follows, and what takes no tokens, in its time. Call it about once a second. */
  tick(nowMs: number): void {
    for (const subscription of this.#subscriptions) subscription.tick(nowMs);
    if (this.#phase === "ended") return;
    if (this.#detachedSinceMs !== undefined && nowMs - this.#detachedSinceMs > this.#graceMs) {
      this.services.metrics.abandoned();
      this.cancel();
    }
    if (this.#parkedSinceMs !== undefined && nowMs - this.#parkedSinceMs > limits.parkedMs)
      this.fail(new MillraceError("credit_exhausted", `credit beyond token ${this.#creditSeq} did not come within ${limits.parkedMs} ms`));
  }

  /** It is not kept any more: who still waits for its tokens is told. */
  forget(): void {
    const error = new MillraceError("credit_exhausted", "the answer was over, and its text could not be kept until it was taken");
    for (const subscription of this.#subscriptions) subscription.break(() => subscription.subscriber.failed(error));
    this.#subscriptions.clear();
  }

  /** This and the next three are the inference's calls. */
  queued(place: number): void {
    if (!this.#lastWord) for (const { subscriber } of this.#subscriptions) subscriber.queued(place);
  }

  tokens(released: Released): void {
    if (this.#lastWord) return;
    const continued = this.#continuedTokens;
    const fresh = released.seq - Math.max(continued, this.#log.seq);
    const nowMs = this.services.now();
    if (fresh > 0) {
      const isFirst = this.#log.seq <= continued;
      const gapMs = this.#durations.released(fresh, nowMs);
      if (isFirst) this.services.metrics.firstToken(this.request.class, gapMs);
      else this.services.metrics.laterToken(this.request.class, gapMs);
    }
    this.#log.append(released);
    for (const subscription of this.#subscriptions) subscription.grown(nowMs);
    this.#parkWithoutCredit();
  }

  failed(why: string): void {
    this.fail(new MillraceError("internal", why));
  }

  finished({ seq, reason, cachedTokens, queueMs, prefillMs, decodeMs }: InferenceEnd): void {
    if (this.#lastWord) return;
    const service = this.request.class;
    const durationMs = this.services.now() - this.#durations.receivedMs;
    this.#resume();
    const continuedTokens = this.#continuedTokens;
    // One that was cancelled before what it continues was computed knows no more of it than that.
    const saidSeq = this.#log.seq < continuedTokens ? this.#log.seq : seq;
    const promptTokens = this.#prepared?.inference.prompt.length ?? 0;
    const usage = { promptTokens, cachedTokens, completionTokens: Math.max(seq, continuedTokens), continuedTokens };
    const { slo, parkedMs } = this.#durations;
    const timings = { queueMs: this.#preparedMs + queueMs, prefillMs, decodeMs, parkedMs, outboxMs: 0, ...this.#durations.gap(0) };
    const end: Ending = { seq: saidSeq, reason, textBytes: this.#log.textBytes, digest: this.#log.digest, usage, timings, slo };
    const tokens = Math.max(0, seq - continuedTokens);
    this.services.metrics.done(service, { reason, cachedTokens, tokens, durationMs, decodeMs, isGood: slo.good });
    this.#end({ kind: "done", end });
  }

  async #run(): Promise<void> {
    const prepared = await prepare(this.services, this.request, () => this.#phase === "ended" || this.#lastWord !== undefined);
    if (!prepared || this.#lastWord || this.#phase === "ended") return;
    const { inference, metrics } = this.services;
    const { deadlines } = prepared.inference;
    this.#prepared = prepared;
    this.#preparedMs = this.services.now() - this.#durations.receivedMs;
    // Promises count from START, the engine's from here.
    const asked = { ...deadlines, ttftMs: Math.max(1, deadlines.ttftMs - this.#preparedMs) };
    const seed = this.request.options.seed ?? randomInt(2 ** 48 - 1);
    const handle = inference.submit({ ...prepared.inference, seed, deadlines: asked }, this);
    this.#handle = handle;
    this.#phase = "running";
    metrics.taken(prepared.inference.prompt.length);
    const admission = this.#sinceStart(handle.admission);
    const [ttftMs, itlMs] =
      "waitMs" in admission ? [admission.waitMs + deadlines.ttftMs, deadlines.itlMs] : [admission.ttftMs, admission.itlMs];
    this.#durations.promise(ttftMs, itlMs);
    for (const { subscriber } of this.#subscriptions)
      subscriber.started(this.id, prepared.inference.prompt.length, prepared.droppedTurns, admission);
    this.#parkWithoutCredit();
  }

  #sinceStart(admission: Admission): Admission {
    return "waitMs" in admission ? admission : { ...admission, ttftMs: admission.ttftMs + this.#preparedMs };
  }

  #end(lastWord: LastWord): void {
    this.#resume();
    this.#phase = "ended";
    this.#lastWord = lastWord;
    if (lastWord.kind !== "done") this.#handle?.cancel();
    for (const subscription of this.#subscriptions) this.#sayLast(subscription, lastWord);
    this.events.ended(this);
  }

  #sayLast(subscription: Subscription, lastWord: LastWord): void {
    const { subscriber } = subscription;
    if (lastWord.kind === "done") subscription.end(() => this.#sayDone(subscription, lastWord.end));
    else if (lastWord.kind === "failed") subscription.break(() => subscriber.failed(lastWord.error));
    else subscription.break(() => subscriber.handedOff(this.#log.seq));
  }

  #sayDone({ subscriber, outboxMs }: Subscription, end: Ending): void {
    subscriber.done({ ...end, timings: { ...end.timings, outboxMs, ...this.#durations.gap(outboxMs) } });
  }

  /** Tells one that came later what the others had. */
  #catchUp(subscription: Subscription): void {
    if (subscription.isOver) return;
    const { subscriber } = subscription;
    subscriber.resumed(this.id, this.#log.seq, this.#prepared?.inference.prompt.length ?? 0, this.#prepared?.droppedTurns ?? 0);
    if (this.#truncated) subscriber.truncated(this.#truncated.seq, this.#truncated.textBytes);
    subscription.grown();
    if (this.#lastWord) this.#sayLast(subscription, this.#lastWord);
  }

  #raiseCredit(seqMax: number): void {
    this.#creditSeq = Math.max(this.#creditSeq, seqMax);
    if (this.#creditSeq > this.#log.seq) this.#resume();
  }

  /** Nobody takes what would be computed now. */
  #parkWithoutCredit(): void {
    if (!this.#handle || this.#lastWord || this.#parkedSinceMs !== undefined || this.#creditSeq > this.#log.seq) return;
    if (!this.events.mayPark(this)) {
      const why = `credit ended with token ${this.#creditSeq}, and ${limits.parkedOfTenantMax} answers of this tenant are parked already`;
      this.fail(new MillraceError("credit_exhausted", why));
      return;
    }
    this.#parkedSinceMs = this.services.now();
    this.events.parked(this, true);
    this.#handle.pause();
  }

  #resume(): void {
    if (this.#parkedSinceMs === undefined) return;
    this.#durations.parked(this.services.now() - this.#parkedSinceMs);
    this.#parkedSinceMs = undefined;
    this.events.parked(this, false);
    this.#handle?.resume();
  }

  #asMillraceError(error: unknown): MillraceError {
    if (error instanceof MillraceError) return error;
    this.services.log(`response ${this.id} failed: ${error instanceof Error ? error.stack : String(error)}`);
    return new MillraceError("internal", `the origin failed on this request; its log has response ${this.id}`);
  }
}
