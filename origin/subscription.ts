/**
 * One subscriber of one answer: a place in its log, a credit and a pace. It sends what the log has beyond the place, as far as the credit
 * goes and the socket takes it, so a reader that is slow, late or back again costs no memory of its own: the log is its outbox.
 */
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import { type Admission, TokenFlag } from "../shared/protocol.js";
import { bounds } from "./bounds.js";
import type { TokenLogprobs } from "./inference.js";
import type { ResponseLog } from "./log.js";
import type { Flushable, FrameClock } from "./pacing.js";
import type { Ending } from "./response.js";

/** Who is told, in the wire's order: one stream of a session. */
export interface Subscriber {
  started(response: string, promptTokens: number, droppedTurns: number, admission: Admission): void;
  resumed(response: string, seq: number, promptTokens: number, droppedTurns: number): void;
  queued(place: number): void;
  tokens(seq: number, text: string, flags: number, ids?: readonly number[], logprobs?: readonly TokenLogprobs[]): void;
  truncated(seq: number, textBytes: number): void;
  /** The last call of a stream is one of these; `truncated`, and `done` again, may follow it. */
  done(end: Ending): void;
  failed(error: MillraceError): void;
  handedOff(seq: number): void;
  /** Whether the socket would have to hold what it is given now. `flush` comes once it does not any more. */
  isFull(): boolean;
}

export interface SubscriptionOptions {
  /** The last token that the subscriber has. */
  from: number;
  /** The last that it is ready to take. */
  creditSeq: number;
  /** 0: each token goes out at once. */
  flushEveryMs: number;
  wantsIds: boolean;
}

export class Subscription implements Flushable {
  readonly #flushEveryMs: number;
  readonly #wantsIds: boolean;
  #sent: number;
  #creditSeq: number;
  #flushedMs = Number.NEGATIVE_INFINITY;
  /** Since when something waits that the credit allows. */
  #waitsSinceMs: number | undefined;
  /** Since when nothing more may be sent for want of credit, though the answer is over. */
  #stalledSinceMs: number | undefined;
  #outboxMs = 0;
  /** Sends the stream's last message, once all tokens are sent. */
  #last: (() => void) | undefined;
  #isOver = false;

  constructor(
    readonly subscriber: Subscriber,
    private readonly log: ResponseLog,
    { from, creditSeq, flushEveryMs, wantsIds }: SubscriptionOptions,
    private readonly clock: FrameClock,
    private readonly now: () => number,
  ) {
    this.#sent = from;
    this.#creditSeq = creditSeq;
    this.#flushEveryMs = flushEveryMs;
    this.#wantsIds = wantsIds;
  }

  get creditSeq(): number {
    return this.#creditSeq;
  }

  /** Its last message was sent. */
  get isOver(): boolean {
    return this.#isOver;
  }

  /** The longest that a token waited to be sent, in milliseconds. */
  get outboxMs(): number {
    return this.#outboxMs;
  }

  /** Absolute, and only grows. */
  credit(seqMax: number): void {
    if (seqMax <= this.#creditSeq) return;
    this.#creditSeq = seqMax;
    this.#stalledSinceMs = undefined;
    this.grown();
  }

  /** The log has more. */
  grown(nowMs = this.now()): void {
    if (this.#isOver) return;
    if (nowMs - this.#flushedMs >= this.#flushEveryMs) {
      this.flush(nowMs);
      return;
    }
    if (this.#sent < Math.min(this.log.seq, this.#creditSeq)) this.#waitsSinceMs ??= nowMs;
    this.clock.putOff(this.#flushEveryMs, this);
  }

  /** Sends what may be sent. */
  flush(nowMs = this.now()): void {
    if (this.#isOver) return;
    const to = Math.min(this.log.seq, this.#creditSeq);
    if (this.#sent < to) this.#flushedMs = nowMs;
    while (this.#sent < to) {
      if (this.subscriber.isFull()) {
        this.#waitsSinceMs ??= nowMs;
        return;
      }
      this.#send(Math.min(this.log.reach(this.#sent, to), this.#sent + bounds.tokensAFrameMax));
      if (this.#isOver) return;
    }
    if (this.#waitsSinceMs !== undefined) this.#outboxMs = Math.max(this.#outboxMs, this.now() - this.#waitsSinceMs);
    this.#waitsSinceMs = undefined;
    if (this.#last && this.#sent >= this.log.seq) this.#finish(this.#last);
    else if (this.#last) this.#stalledSinceMs ??= this.now();
  }

  /** The answer is over: `last` is said after all tokens. */
  end(last: () => void): void {
    if (this.#isOver) return;
    this.#last = last;
    this.grown();
  }

  /** The answer is over for a reason that cannot wait: what may be sent is, then `last`. */
  break(last: () => void): void {
    this.flush();
    if (!this.#isOver) this.#finish(last);
  }

  /** An answer that is over waits for credit no longer than one that runs. */
  tick(nowMs: number): void {
    if (this.#isOver || this.#stalledSinceMs === undefined || nowMs - this.#stalledSinceMs <= limits.parkedMs) return;
    const why = `the answer ended at token ${this.log.seq}, and credit for more than ${this.#sent} did not come within ${limits.parkedMs} ms`;
    this.#finish(() => this.subscriber.failed(new MillraceError("credit_exhausted", why)));
  }

  /** Nothing is sent any more. */
  close(): void {
    this.#isOver = true;
    this.clock.forget(this);
  }

  #send(to: number): void {
    const from = this.#sent;
    this.#sent = to;
    const flags = this.log.endsSentenceBefore(from + 1) ? TokenFlag.sentenceEnded : 0;
    const ids = this.#wantsIds ? this.log.ids(from, to) : undefined;
    const logprobs = this.log.hasLogprobs ? this.log.logprobs(from, to) : undefined;
    this.subscriber.tokens(to, this.log.text(from, to), flags, ids, logprobs);
  }

  #finish(last: () => void): void {
    this.close();
    last();
  }
}
