/**
 * One answer, as its reader sees it: one unbroken iterator, whatever becomes of sockets and origins. It is pulled, never pushed: what has
 * arrived waits here until the reader asks. Text that came is kept whatever happens afterwards.
 */
import { MillraceError } from "../shared/errors.js";
import { type Admission, type Done, type FinishReason, Op, type Slo, type Timings, type Usage } from "../shared/protocol.js";
import type { Asked, KeptWhereabouts } from "./attach.js";
import { Credit } from "./credit.js";
import { clientLimits } from "./limits.js";
import { type Measures, Pace } from "./pace.js";
import { watchHidden } from "./page.js";
import { type Keeper, Tether, type TetherEvents } from "./tether.js";
import { beginning, type KeptText, type TokenLogprobs, Transcript } from "./transcript.js";

export interface Finished {
  reason: FinishReason;
  usage: Usage;
  /** On the origin's clock. Undefined, as `slo`, where it was stopped and no origin had it that could tell. */
  timings: Timings | undefined;
  slo: Slo | undefined;
}

/** How an answer is read. Nothing of it is sent. */
export interface Reading {
  /**
   * How many tokens may come beyond the last that the reader took; without it, all. An answer that has come so far waits for its reader,
   * but for limits.parkedMs at most, and then ends with `credit_exhausted`. The reader is the iterator; where there is none, whoever
   * reads `text` or awaits `done` takes everything as it comes.
   */
  window?: number;
  /** The window stands still while the page is hidden; one that is not given is clientLimits.hiddenWindowTokens. */
  pauseWhenHidden?: boolean;
}

/** What leads a reloaded page back to its answer. It is JSON, and a secret like the resume token in it. */
export interface Kept extends KeptWhereabouts, KeptText {
  version: 1;
  asked: Asked;
  reading: Reading;
  promptTokens: number;
  droppedTurns: number;
  truncatedAt?: number;
}

export class Response implements AsyncIterable<string> {
  /** Called when the place in the queue changes; 1 is the next to run. */
  onQueued: ((place: number) => void) | undefined;
  /** For Link. */
  readonly tether: Tether;

  readonly #transcript: Transcript;
  readonly #credit: Credit;
  readonly #pace: Pace;
  readonly #done: Promise<Finished>;
  readonly #unwatch: () => void;
  #promptTokens: number;
  #droppedTurns: number;
  #truncatedAt: number | undefined;
  #admission: Admission | undefined;
  /** What `truncate` asked for, in bytes. */
  #heardBytes = Number.POSITIVE_INFINITY;
  #finished: Finished | undefined;
  #error: MillraceError | undefined;
  #cancelTimer: ReturnType<typeof setTimeout> | undefined;
  /** In which attempt the first token came; 0: in an earlier page. */
  #firstAttempt: number | undefined;
  #readers = 0;
  #isReadWhole = false;
  #waiting: (() => void)[] = [];
  #resolve!: (finished: Finished) => void;
  #reject!: (error: MillraceError) => void;

  /** Made by Link. @param keeper finds its connections. @throws MillraceError `field_invalid` for a window that is none. */
  constructor(
    private readonly asked: Asked,
    private readonly reading: Reading,
    keeper: Keeper,
    kept?: Kept,
  ) {
    const { window, pauseWhenHidden = false } = reading;
    const hiddenWindow = pauseWhenHidden ? clientLimits.hiddenWindowTokens : undefined;
    this.#transcript = new Transcript((asked.options.logprobs ?? 0) > 0, kept);
    this.#credit = new Credit(window ?? hiddenWindow, (seqMax) => this.tether.credit(seqMax), kept?.seq);
    if (kept && kept.seq > 0) this.#firstAttempt = 0;
    this.#pace = new Pace(kept ? undefined : performance.now(), kept?.seq);
    this.#promptTokens = kept?.promptTokens ?? 0;
    this.#droppedTurns = kept?.droppedTurns ?? 0;
    this.#truncatedAt = kept?.truncatedAt;
    this.tether = new Tether(asked, this.#transcript, () => this.#credit.renew(), this.#events(), keeper, kept);
    this.#done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.#done.catch(() => {});
    this.#unwatch = pauseWhenHidden ? watchHidden((isHidden) => this.#credit.hold(isHidden)) : () => {};
  }

  /** Settles once: with how the answer ended, or with the MillraceError that ended it. Leaving it alone is allowed. */
  get done(): Promise<Finished> {
    this.#readWhole();
    return this.#done;
  }

  /** All text so far, also what lies beyond `truncatedAt`. */
  get text(): string {
    this.#readWhole();
    return this.#transcript.text;
  }

  /** The text as far as it is not truncated: what a conversation goes on from. */
  get heard(): string {
    const bytesMax = Math.min(this.#truncatedAt ?? Number.POSITIVE_INFINITY, this.#heardBytes);
    return bytesMax === Number.POSITIVE_INFINITY ? this.#transcript.text : beginning(this.#transcript.text, bytesMax);
  }

  /** After so many bytes of its text the answer counts as ended; undefined where it was not truncated. */
  get truncatedAt(): number | undefined {
    return this.#truncatedAt;
  }

  /** One a token, where START asked for `logprobs`; those of this page alone. */
  get logprobs(): readonly TokenLogprobs[] {
    return this.#transcript.logprobs;
  }

  /** The last token that has come. */
  get seq(): number {
    return this.#transcript.seq;
  }

  /** The origin's name for this answer, once it has been taken; of the last attempt. */
  get id(): string | undefined {
    return this.tether.id;
  }

  /** The run of the origin to which it was sent. */
  get epoch(): string | undefined {
    return this.tether.home?.epoch;
  }

  /** One more than the origins that were lost under it. */
  get attempts(): number {
    return this.tether.attempt;
  }

  /** What was promised, or how long it is expected to wait for a promise; once it has been taken. */
  get admission(): Admission | undefined {
    return this.#admission;
  }

  get promptTokens(): number {
    return this.#promptTokens;
  }

  /** Messages at the conversation's beginning that did not fit the context and were left out. */
  get droppedTurns(): number {
    return this.#droppedTurns;
  }

  get reason(): FinishReason | undefined {
    return this.#finished?.reason;
  }

  get usage(): Usage | undefined {
    return this.#finished?.usage;
  }

  /** Durations on the origin's clock, in milliseconds. */
  get timings(): Timings | undefined {
    return this.#finished?.timings;
  }

  /** Whether the promise was kept. */
  get slo(): Slo | undefined {
    return this.#finished?.slo;
  }

  /** Durations on this machine's clock, at any time. */
  get measures(): Measures {
    return this.#pace.measures();
  }

  get error(): MillraceError | undefined {
    return this.#error;
  }

  get ended(): boolean {
    return this.#finished !== undefined || this.#error !== undefined;
  }

  /** Asks for the end, as soon as there is a connection. `done` says when it is reached; what has ended stays as it ended. */
  cancel(): void {
    if (this.ended || this.#cancelTimer !== undefined || !this.tether.cancel()) return;
    const why = `the origin did not confirm the stop within ${clientLimits.cancelMs} ms`;
    this.#cancelTimer = setTimeout(() => this.#fail(new MillraceError("connection_timeout", why)), clientLimits.cancelMs);
  }

  /**
   * The user heard, or read, the first `textBytes` bytes of UTF-8: the answer ends there, for everybody who follows it and for the
   * conversation. Allowed after its end too; an origin that does not keep it any more knows nothing of it then.
   * @throws RangeError for what is no number of bytes.
   */
  truncate(textBytes: number): void {
    if (!Number.isSafeInteger(textBytes) || textBytes < 0) throw new RangeError(`textBytes is ${textBytes}, not a number of bytes from 0`);
    this.#heardBytes = Math.min(this.#heardBytes, textBytes);
    this.tether.truncate(textBytes);
  }

  /** For `Link.adopt`, in a page that takes this one's place or stands beside it. */
  kept(): Kept {
    const { asked, reading } = this;
    const [promptTokens, droppedTurns] = [this.#promptTokens, this.#droppedTurns];
    const truncated = this.#truncatedAt === undefined ? {} : { truncatedAt: this.#truncatedAt };
    return { version: 1, asked, reading, ...this.tether.kept, ...this.#transcript.kept, promptTokens, droppedTurns, ...truncated };
  }

  /**
   * Text as it arrives, from the beginning; each pull takes all that waits. Leaving the loop early cancels the answer.
   * @throws MillraceError what ended the answer, after the text that had come.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, void> {
    let read = 0;
    let takenSeq = 0;
    this.#readers++;
    try {
      for (;;) {
        const { text, seq } = this.#transcript;
        const isEverythingRead = read === text.length;
        // Whoever comes for more is done with what it had; tokens that have no text are nothing to wait for.
        this.#credit.consumed(isEverythingRead ? seq : takenSeq);
        if (!isEverythingRead) {
          const delta = text.slice(read);
          read = text.length;
          takenSeq = seq;
          yield delta;
        } else if (this.#error) {
          throw this.#error;
        } else if (this.#finished) {
          return;
        } else {
          await new Promise<void>((resolve) => this.#waiting.push(resolve));
        }
      }
    } finally {
      this.#readers--;
      this.cancel();
    }
  }

  #events(): TetherEvents {
    return {
      sent: () => this.#pace.sent(performance.now()),
      taken: (said) => {
        if (said[0] === Op.STARTED) [, , , this.#promptTokens, this.#droppedTurns, this.#admission] = said;
        else [, , , , this.#promptTokens, this.#droppedTurns] = said;
      },
      queued: (place) => this.onQueued?.(place),
      grew: () => this.#grew(),
      truncated: (textBytes) => {
        this.#truncatedAt = Math.min(textBytes, this.#truncatedAt ?? textBytes);
      },
      done: (message) => this.#finish(message),
      failed: (error) => this.#fail(error),
      stopped: () => this.#stopped(),
    };
  }

  #grew(): void {
    const { seq } = this.#transcript;
    this.#pace.arrived(seq, performance.now());
    this.#firstAttempt ??= this.tether.attempt;
    if (this.#isReadWhole && this.#readers === 0) this.#credit.consumed(seq);
    this.#wake();
  }

  /** Somebody takes what comes without pulling it. */
  #readWhole(): void {
    if (this.#isReadWhole) return;
    this.#isReadWhole = true;
    if (this.#readers === 0) this.#credit.consumed(this.#transcript.seq);
  }

  #finish(message: Done): void {
    const damage = this.#transcript.damage(message);
    if (damage !== undefined) {
      this.#fail(new MillraceError("answer_damaged", `the answer arrived damaged: ${damage}; ask again`));
      return;
    }
    const [, , , reason, , , usage, timings, slo] = message;
    // The first token's wait is explained only by the origin that it came from.
    if (this.#firstAttempt === this.tether.attempt) this.#pace.explained(timings.queueMs + timings.prefillMs + timings.outboxMs);
    this.#end({ reason, usage, timings, slo });
  }

  #stopped(): void {
    const usage = { promptTokens: this.#promptTokens, cachedTokens: 0, completionTokens: this.#transcript.seq, continuedTokens: 0 };
    this.#end({ reason: "cancelled", usage, timings: undefined, slo: undefined });
  }

  #end(finished: Finished): void {
    if (this.ended) return;
    this.#finished = finished;
    this.#resolve(finished);
    this.#settle();
  }

  #fail(error: MillraceError): void {
    if (this.ended) return;
    this.#error = error;
    this.#reject(error);
    this.#settle();
  }

  #settle(): void {
    clearTimeout(this.#cancelTimer);
    this.#unwatch();
    this.#wake();
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}
