/**
 * One answer, as its reader sees it. It is pulled, never pushed: what has arrived waits here until the reader asks. Text that came is
 * kept whatever happens afterwards.
 */
import { Digest } from "../shared/digest.js";
import { MillraceError } from "../shared/errors.js";
import {
  type Admission,
  type Done,
  type FinishReason,
  type Logprobs,
  Op,
  type ServerMessage,
  type Timings,
  type Tokens,
  type Usage,
} from "../shared/protocol.js";
import { clientLimits } from "./limits.js";
import { type Measures, Pace } from "./pace.js";

export interface Finished {
  reason: FinishReason;
  usage: Usage;
  timings: Timings;
}

/** A token's log-probability in the model's own distribution, and the likeliest tokens' in falling order. */
export interface TokenLogprobs {
  id: number;
  logprob: number;
  top: { id: number; logprob: number }[];
}

export class Response implements AsyncIterable<string> {
  /** Settles once: with how the answer ended, or with the MillraceError that ended it. Leaving it alone is allowed. */
  readonly done: Promise<Finished>;
  /** Called when the place in the queue changes; 1 is the next to run. */
  onQueued: ((place: number) => void) | undefined;

  #text = "";
  #logprobs: TokenLogprobs[] = [];
  #logprobsSeq = 0;
  #seq = 0;
  #digest = new Digest();
  #pace: Pace;
  #id: string | undefined;
  #promptTokens = 0;
  #admission: Admission | undefined;
  #droppedTurns = 0;
  #finished: Finished | undefined;
  #error: MillraceError | undefined;
  #cancelTimer: ReturnType<typeof setTimeout> | undefined;
  #waiting: (() => void)[] = [];
  #resolve!: (finished: Finished) => void;
  #reject!: (error: MillraceError) => void;

  /** @param sendCancel sends this stream's CANCEL. Made by Connection.start, nobody else. */
  constructor(private readonly sendCancel: () => void) {
    this.#pace = new Pace(performance.now());
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.done.catch(() => {});
  }

  /** All text so far. */
  get text(): string {
    return this.#text;
  }

  /** One a token, where START asked for `logprobs`. */
  get logprobs(): readonly TokenLogprobs[] {
    return this.#logprobs;
  }

  /** The origin's name for this answer, once it has been taken. */
  get id(): string | undefined {
    return this.#id;
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

  /** Asks the origin to stop. `done` says when it has; an answer that has ended stays as it ended. */
  cancel(): void {
    if (this.ended || this.#cancelTimer !== undefined) return;
    this.#cancelTimer = setTimeout(
      () => this.fail(new MillraceError("connection_timeout", `the origin did not confirm the stop within ${clientLimits.cancelMs} ms`)),
      clientLimits.cancelMs,
    );
    this.sendCancel();
  }

  /**
   * Text as it arrives, from the beginning; each pull takes all that waits. Leaving the loop early cancels the answer.
   * @throws MillraceError what ended the answer, after the text that had come.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, void> {
    let read = 0;
    try {
      for (;;) {
        if (read < this.#text.length) {
          const delta = this.#text.slice(read);
          read = this.#text.length;
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
      this.cancel();
    }
  }

  /** Takes one of the stream's messages. For Connection. */
  apply(message: ServerMessage): void {
    if (this.ended) return;
    if (message[0] === Op.TOKENS) this.#append(message);
    else if (message[0] === Op.LOGPROBS) this.#appendLogprobs(message);
    else if (message[0] === Op.STARTED) [, , this.#id, this.#promptTokens, this.#droppedTurns, this.#admission] = message;
    else if (message[0] === Op.QUEUED) this.onQueued?.(message[2]);
    else if (message[0] === Op.DONE) this.#finish(message);
    else if (message[0] === Op.ERROR) this.fail(new MillraceError(message[2], message[3], message[4]));
  }

  /** Ends the answer with an error, unless it has ended. For Connection. */
  fail(error: MillraceError): void {
    if (this.ended) return;
    this.#error = error;
    this.#reject(error);
    this.#settle();
  }

  #append([, , seq, text]: Tokens): void {
    if (seq <= this.#seq) return;
    this.#seq = seq;
    this.#pace.arrived(seq, performance.now());
    if (text === "") return;
    this.#digest.update(utf8.encode(text));
    this.#text += text;
    this.#wake();
  }

  #appendLogprobs([, , seq, tokens]: Logprobs): void {
    if (seq <= this.#logprobsSeq) return;
    this.#logprobsSeq = seq;
    for (const row of tokens) {
      const pairs = Array.from({ length: row.length / 2 }, (_, index) => ({ id: row[2 * index] ?? 0, logprob: row[2 * index + 1] ?? 0 }));
      const [own = { id: 0, logprob: 0 }, ...top] = pairs;
      this.#logprobs.push({ ...own, top });
    }
  }

  #finish([, , , reason, textBytes, digest, usage, timings]: Done): void {
    if (textBytes === this.#digest.bytes && digest === this.#digest.value) {
      this.#finished = { reason, usage, timings };
      this.#resolve(this.#finished);
      this.#settle();
      return;
    }
    const [sent, came] = [`${textBytes} bytes (${hex(digest)})`, `${this.#digest.bytes} bytes (${hex(this.#digest.value)})`];
    this.fail(new MillraceError("answer_damaged", `the answer arrived damaged: the origin sent ${sent}, but ${came} came; ask again`));
  }

  #settle(): void {
    clearTimeout(this.#cancelTimer);
    this.#wake();
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

const utf8 = new TextEncoder();

function hex(digest: number): string {
  return digest.toString(16).padStart(8, "0");
}
