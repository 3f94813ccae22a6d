/**
 * An inference that says words on a clock, for tests and load tests of everything but the engine. Each token is a hash of all tokens before
 * it, the prompt's included: a wrong prefix, order or count changes everything that follows. Seeds and temperatures change nothing.
 */
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import type { Admission, FinishReason } from "../shared/protocol.js";
import { bounds } from "./bounds.js";
import type { Vocabulary } from "./chat/vocabulary.js";
import type { Inference, InferenceHandle, InferenceListener, InferenceLoad, InferenceModel, InferenceRequest } from "./inference.js";
import { type Piece, TextDecoding } from "./simulatedText.js";
import { emptyHash, fold, Speech, simulatedVocabulary } from "./simulatedVocabulary.js";
import { StopFilter } from "./stops.js";
import { Wheel } from "./wheel.js";

export { simulatedVocabulary } from "./simulatedVocabulary.js";

export interface SimulatedOptions {
  /** Of each running answer. */
  tokensPerSecond: number;
  /** An answer ends by itself with this token, as if it were the end of the turn. */
  answerTokens: number;
  slots: number;
  contextTokens: number;
  /** What it speaks in. Default: a small one of its own. */
  vocabulary?: Vocabulary;
  /** Requests that may wait for a slot. Default limits.waitingMax. */
  waitingMax?: number;
}

/** What the origin's flags say of it; undefined is the default. */
export interface SimulatedConfig {
  simulatedTokensPerSecond: number;
  simulatedAnswerTokens: number;
  slots: number | undefined;
  contextTokens: number | undefined;
}

export async function loadSimulated(
  config: SimulatedConfig,
  log: (line: string) => void,
): Promise<{ inference: Inference; vocabulary: Vocabulary }> {
  const { simulatedTokensPerSecond: tokensPerSecond, simulatedAnswerTokens: answerTokens, slots = 32, contextTokens = 8_192 } = config;
  log(`simulated inference: no model answers; words on a clock, ${tokensPerSecond} a second for each of ${slots} slots`);
  const vocabulary = simulatedVocabulary();
  return { inference: new SimulatedInference({ tokensPerSecond, answerTokens, slots, contextTokens, vocabulary }), vocabulary };
}

/** What the simulated inference answers to these prompt ids with so many tokens and no stop strings: what tests expect. */
export function simulatedAnswer(vocabulary: Vocabulary, prompt: ArrayLike<number>, tokens: number): { ids: number[]; text: string } {
  const speaker = new Speaker(new Speech(vocabulary), prompt);
  const decoding = new TextDecoding();
  const ids: number[] = [];
  let text = "";
  for (let count = 0; count < tokens; count++) {
    const id = speaker.next();
    ids.push(id);
    for (const piece of decoding.push(id, speaker.bytesOf(id))) text += piece.text;
  }
  for (const piece of decoding.flush()) text += piece.text;
  return { ids, text };
}

/** Draws one answer's tokens. */
class Speaker {
  #hash = emptyHash;
  #lacking = 0;

  constructor(
    private readonly speech: Speech,
    prompt: ArrayLike<number>,
  ) {
    for (let index = 0; index < prompt.length; index++) this.#hash = fold(this.#hash, prompt[index] as number);
  }

  next(): number {
    const id = this.speech.draw(this.#hash, this.#lacking);
    this.take(id);
    return id;
  }

  /** One that was said elsewhere. */
  take(id: number): void {
    this.#hash = fold(this.#hash, id);
    this.#lacking = this.speech.lackingAfter(id, this.#lacking);
  }

  bytesOf(id: number): Uint8Array {
    return this.speech.bytes[id] ?? new Uint8Array();
  }
}

interface Sequence {
  readonly request: InferenceRequest;
  readonly listener: InferenceListener;
  readonly speaker: Speaker;
  readonly decoding: TextDecoding;
  readonly stops: StopFilter;
  readonly submittedMs: number;
  startedMs: number;
  firstMs: number;
  seq: number;
  /** Of these, released. */
  released: number;
  place: number;
  state: "waiting" | "running" | "paused" | "over";
}

export class SimulatedInference implements Inference {
  readonly kind = "simulated";
  readonly model: InferenceModel;
  readonly #speech: Speech;
  readonly #waiting = new Set<Sequence>();
  readonly #paused = new Set<Sequence>();
  readonly #stepMs: number;
  /** Those that have a slot, spread over a step's time. */
  readonly #wheel: Wheel<Sequence>;
  #closed = false;

  constructor(private readonly options: SimulatedOptions) {
    this.model = { name: "simulated", contextTokens: options.contextTokens, runsOn: "a clock" };
    this.#speech = new Speech(options.vocabulary ?? simulatedVocabulary());
    this.#stepMs = 1_000 / options.tokensPerSecond;
    this.#wheel = new Wheel(
      this.#stepMs,
      (sequence) => this.#advance(sequence),
      () => this.#startWaiting(),
    );
  }

  submit(request: InferenceRequest, listener: InferenceListener): InferenceHandle {
    const total = request.prompt.length + request.maxTokens;
    const { waitingMax = limits.waitingMax } = this.options;
    if (total > this.model.contextTokens)
      throw new MillraceError("context_exceeded", `${total} tokens are over the context of ${this.model.contextTokens}`);
    if (this.#waiting.size >= waitingMax)
      throw new MillraceError("overloaded", `${this.#waiting.size} requests wait for a slot already`, bounds.retryAfterMs);
    if (request.logprobs !== undefined)
      throw new MillraceError("field_invalid", "logprobs are asked for, but the simulated inference has no model and so none");
    if (this.#closed) throw new MillraceError("draining", "the simulated inference is closed");
    const now = performance.now();
    const sequence: Sequence = {
      ...{ request, listener, submittedMs: now, startedMs: now, firstMs: now },
      ...{ speaker: new Speaker(this.#speech, request.prompt), decoding: new TextDecoding(), stops: new StopFilter(request.stop) },
      ...{ seq: 0, released: 0, place: 0, state: "waiting" as const },
    };
    const admission = this.#admission(request);
    this.#waiting.add(sequence);
    this.#wheel.wake();
    if (request.continueIds.length > 0) setImmediate(() => this.#continue(sequence));
    return {
      admission,
      cancel: () => this.#cancel(sequence),
      pause: () => this.#pause(sequence),
      resume: () => this.#resume(sequence),
    };
  }

  async compile(): Promise<never> {
    throw new MillraceError("field_invalid", "a format is asked for, but the simulated inference has no model to hold to it");
  }

  load(): InferenceLoad {
    const waiting = this.#waiting.size + this.#paused.size;
    return { running: this.#wheel.size, waiting, slots: this.options.slots, kvBytesMapped: 0, kvBytesMax: 0, misses: {} };
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const sequence of [...this.#wheel.items(), ...this.#waiting, ...this.#paused]) {
      this.#forget(sequence);
      sequence.listener.failed("the simulated inference was closed while it answered");
    }
    this.#wheel.close();
  }

  /** A clock keeps what it can; who finds no slot waits as long as whole answers take. */
  #admission({ deadlines: { ttftMs, itlMs } }: InferenceRequest): Admission {
    const ahead = this.#wheel.size + this.#waiting.size - this.options.slots;
    if (ahead >= 0) return { waitMs: Math.ceil((ahead + 1) / this.options.slots) * this.options.answerTokens * this.#stepMs };
    return { ttftMs: Math.max(ttftMs, 2 * this.#stepMs), itlMs: Math.max(itlMs, this.#stepMs) };
  }

  /** Gives free slots to those who wait, in their order, and tells the others their places. @returns whether anybody is left. */
  #startWaiting(): boolean {
    for (const sequence of this.#waiting) {
      if (this.#wheel.size >= this.options.slots) break;
      this.#waiting.delete(sequence);
      if (sequence.place !== -1) sequence.startedMs = performance.now();
      sequence.place = -1;
      sequence.state = "running";
      this.#wheel.add(sequence);
    }
    let place = 0;
    for (const sequence of this.#waiting) {
      place++;
      if (sequence.place === place || sequence.place === -1) continue;
      sequence.place = place;
      sequence.listener.queued(place);
    }
    return this.#waiting.size > 0;
  }

  /** What was said elsewhere is taken up, and told as if it had been said here. */
  #continue(sequence: Sequence): void {
    const { continueIds, maxTokens } = sequence.request;
    for (const id of continueIds) {
      if (sequence.state === "over") return;
      sequence.speaker.take(id);
      sequence.seq++;
      this.#release(sequence, sequence.decoding.push(id, sequence.speaker.bytesOf(id)));
    }
    if (sequence.state !== "over" && sequence.seq >= maxTokens) this.#finish(sequence, "length");
  }

  #advance(sequence: Sequence): void {
    // What it continues is taken up first.
    if (sequence.seq < sequence.request.continueIds.length) return;
    const { minTokens, ignoreEos, continueIds, maxTokens } = sequence.request;
    const seq = ++sequence.seq;
    if (seq === continueIds.length + 1) sequence.firstMs = performance.now();
    if (seq >= this.options.answerTokens && seq > minTokens && !ignoreEos) {
      this.#finish(sequence, "stop");
      return;
    }
    const id = sequence.speaker.next();
    this.#release(sequence, sequence.decoding.push(id, sequence.speaker.bytesOf(id)));
    // The listener may have cancelled, or paused what is over.
    if (sequence.state !== "over" && seq >= maxTokens) this.#finish(sequence, "length");
  }

  #release(sequence: Sequence, pieces: Piece[]): void {
    const { released, stopped } = sequence.stops.push(pieces, sequence.seq > sequence.request.minTokens);
    this.#tell(sequence, released);
    if (stopped && sequence.state !== "over") this.#finish(sequence, "stop", true);
  }

  #tell(sequence: Sequence, pieces: readonly Piece[]): void {
    if (pieces.length === 0) return;
    sequence.released += pieces.length;
    const seq = sequence.released;
    const [only] = pieces;
    if (only && pieces.length === 1) {
      sequence.listener.tokens({ seq, text: only.text, ids: [only.id], ends: [Buffer.byteLength(only.text)] });
      return;
    }
    let bytes = 0;
    const ends = pieces.map(({ text }) => {
      bytes += Buffer.byteLength(text);
      return bytes;
    });
    sequence.listener.tokens({ seq, text: pieces.map(({ text }) => text).join(""), ids: pieces.map(({ id }) => id), ends });
  }

  #finish(sequence: Sequence, reason: FinishReason, isStopped = false): void {
    this.#forget(sequence);
    if (reason !== "cancelled" && !isStopped) this.#tell(sequence, [...sequence.stops.end(), ...sequence.decoding.flush()]);
    sequence.listener.finished({
      seq: sequence.seq,
      reason,
      cachedTokens: 0,
      queueMs: sequence.startedMs - sequence.submittedMs,
      prefillMs: Math.max(0, sequence.firstMs - sequence.startedMs),
      decodeMs: performance.now() - sequence.firstMs,
    });
  }

  #cancel(sequence: Sequence): void {
    if (sequence.state === "over") return;
    this.#forget(sequence);
    setImmediate(() => this.#finish(sequence, "cancelled"));
  }

  /** Its slot is free for others meanwhile. */
  #pause(sequence: Sequence): void {
    if (sequence.state === "over" || sequence.state === "paused") return;
    this.#forget(sequence);
    sequence.state = "paused";
    this.#paused.add(sequence);
  }

  #resume(sequence: Sequence): void {
    if (sequence.state !== "paused") return;
    this.#paused.delete(sequence);
    sequence.state = "waiting";
    this.#waiting.add(sequence);
    this.#wheel.wake();
  }

  #forget(sequence: Sequence): void {
    sequence.state = "over";
    this.#wheel.delete(sequence);
    this.#waiting.delete(sequence);
    this.#paused.delete(sequence);
  }
}
