/**
 * An inference that says words on a clock, for tests and load tests of everything but the engine. Each token is a hash of all tokens before
 * it, the prompt's included: a wrong prefix, order or count changes everything that follows. Seeds, temperatures, penalties and biases change
 * nothing.
 */
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import type { Admission, FinishReason } from "../shared/protocol.js";
import { bounds } from "./bounds.js";
import { isText, type Vocabulary } from "./chat/vocabulary.js";
import type { Inference, InferenceHandle, InferenceListener, InferenceLoad, InferenceModel, InferenceRequest } from "./inference.js";
import { readVocabulary } from "./native.js";
import { Speaker, Speech } from "./simulatedSpeech.js";
import { Stamps } from "./simulatedStamps.js";
import type { Release } from "./simulatedText.js";
import { simulatedVocabulary } from "./simulatedVocabulary.js";
import { Wheel } from "./wheel.js";

export { simulatedAnswer } from "./simulatedSpeech.js";
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
  /** Whether each answer has a moment of its own within a step's time; without, all have their tokens at once, as an engine's step. Default true. */
  spread?: boolean;
  /** In place of words, each token says when it was due: simulatedStamps.ts. Default false. */
  stamps?: boolean;
}

/** What the origin's flags say of it; undefined is the default. */
export interface SimulatedConfig {
  simulatedTokensPerSecond: number;
  simulatedAnswerTokens: number;
  simulatedStamps?: boolean | undefined;
  /** The model in whose vocabulary it speaks: a GGUF file or a folder. Default: a small vocabulary of its own. */
  simulatedModel?: string | undefined;
  slots: number | undefined;
  contextTokens: number | undefined;
}

/** @throws EngineError or VocabularyError saying what is wrong with the model's vocabulary. */
export async function loadSimulated(
  config: SimulatedConfig,
  log: (line: string) => void,
): Promise<{ inference: Inference; vocabulary: Vocabulary }> {
  const { simulatedTokensPerSecond: tokensPerSecond, simulatedAnswerTokens: answerTokens, simulatedModel } = config;
  const { simulatedStamps: stamps = false, slots = 32, contextTokens = 8_192 } = config;
  const vocabulary = simulatedModel === undefined ? simulatedVocabulary() : await readVocabulary(simulatedModel);
  const words = simulatedModel === undefined ? "words" : `the ${vocabulary.tokens.length} tokens of ${simulatedModel}`;
  log(`simulated inference: no model answers; ${words} on a clock, ${tokensPerSecond} a second for each of ${slots} slots`);
  return { inference: new SimulatedInference({ tokensPerSecond, answerTokens, slots, contextTokens, vocabulary, stamps }), vocabulary };
}

interface Sequence {
  readonly listener: InferenceListener;
  readonly speaker: Speaker;
  readonly submittedMs: number;
  readonly minTokens: number;
  readonly maxTokens: number;
  /** The token with which it ends by itself; 0: never. */
  readonly endSeq: number;
  /** Tokens that it continues, before the first of its own. */
  readonly continued: number;
  /** When it first got a slot, and had its first token here. */
  startedMs: number | undefined;
  firstMs: number | undefined;
  /** Tokens of the answer, and of these those that were told. */
  seq: number;
  told: number;
  /** In the line of those who wait, as it was told last; 0: it was not. */
  place: number;
  /** One that is `ending` was cancelled, and is told so in a later turn of the loop. */
  state: "waiting" | "running" | "paused" | "ending" | "over";
}

export class SimulatedInference implements Inference {
  readonly kind = "simulated";
  readonly model: InferenceModel;
  readonly #vocabulary: Vocabulary;
  readonly #speech: Speech;
  readonly #waiting = new Set<Sequence>();
  readonly #paused = new Set<Sequence>();
  readonly #stepMs: number;
  readonly #stamps: Stamps | undefined;
  /** Those that have a slot. */
  readonly #wheel: Wheel<Sequence>;
  #closed = false;

  constructor(private readonly options: SimulatedOptions) {
    this.model = { name: "simulated", contextTokens: options.contextTokens, runsOn: "a clock" };
    this.#vocabulary = options.vocabulary ?? simulatedVocabulary();
    this.#speech = Speech.of(this.#vocabulary);
    this.#stepMs = 1_000 / options.tokensPerSecond;
    this.#stamps = options.stamps ? new Stamps() : undefined;
    this.#wheel = new Wheel(
      this.#stepMs,
      options.spread ?? true,
      (sequence, dueMs) => this.#advance(sequence, dueMs),
      () => this.#startWaiting(),
    );
  }

  submit(request: InferenceRequest, listener: InferenceListener): InferenceHandle {
    this.#check(request);
    const { prompt, stop, minTokens, maxTokens, ignoreEos, continueIds } = request;
    const sequence: Sequence = {
      listener,
      speaker: new Speaker(this.#speech, prompt, stop),
      submittedMs: performance.now(),
      minTokens,
      maxTokens,
      endSeq: ignoreEos ? 0 : Math.max(this.options.answerTokens, minTokens + 1),
      continued: continueIds.length,
      startedMs: undefined,
      firstMs: undefined,
      seq: 0,
      told: 0,
      place: 0,
      state: "waiting",
    };
    const admission = this.#admission(request);
    this.#waiting.add(sequence);
    this.#wheel.wake();
    if (continueIds.length > 0) setImmediate(() => this.#takeUp(sequence, continueIds));
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
    return { running: this.#wheel.size, waiting, slots: this.options.slots, kvBytesMapped: 0, kvBytesHeld: 0, kvBytesMax: 0, misses: {} };
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const sequence of [...this.#wheel.items(), ...this.#waiting, ...this.#paused]) {
      this.#leave(sequence, "over");
      sequence.listener.failed("the simulated inference was closed while it answered");
    }
    this.#wheel.close();
  }

  #check({ prompt, maxTokens, logprobs, continueIds }: InferenceRequest): void {
    const total = prompt.length + maxTokens;
    if (total > this.model.contextTokens)
      throw new MillraceError("context_exceeded", `${total} tokens are over the context of ${this.model.contextTokens}`);
    if (logprobs !== undefined)
      throw new MillraceError("field_invalid", "logprobs are asked for, but the simulated inference has no model and so none");
    const strange = continueIds.find((id) => !isText(this.#vocabulary, id));
    if (strange !== undefined) throw new MillraceError("field_invalid", `continueIds has token ${strange}, which no answer contains`);
    // Who comes when there are slots does not wait for one, though the clock has yet to give it.
    const { waitingMax = limits.waitingMax, slots } = this.options;
    if (this.#waiting.size >= waitingMax + Math.max(0, slots - this.#wheel.size))
      throw new MillraceError("overloaded", `${this.#waiting.size} requests wait for a slot already`, bounds.retryAfterMs);
    if (this.#closed) throw new MillraceError("draining", "the simulated inference is closed");
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
      sequence.state = "running";
      sequence.startedMs ??= performance.now();
      this.#wheel.add(sequence);
    }
    let place = 0;
    for (const sequence of this.#waiting) {
      place++;
      // Who was paused has begun already.
      if (sequence.place === place || sequence.startedMs !== undefined) continue;
      sequence.place = place;
      sequence.listener.queued(place);
    }
    return this.#waiting.size > 0;
  }

  /** What was said elsewhere counts as said here, and is told before all else. */
  #takeUp(sequence: Sequence, ids: Int32Array): void {
    // Closed meanwhile.
    if (sequence.state === "over") return;
    for (const id of ids) if (!this.#say(sequence, id)) return;
  }

  #advance(sequence: Sequence, dueMs: number): void {
    // What it continues comes first, with this turn of the loop.
    if (sequence.seq < sequence.continued) return;
    sequence.firstMs ??= performance.now();
    // A continued one may be beyond where it would have ended.
    if (sequence.endSeq === 0 || sequence.seq + 1 < sequence.endSeq) {
      if (this.#stamps) this.#release(sequence, this.#stamps.at(dueMs));
      else this.#say(sequence, sequence.speaker.next());
      return;
    }
    sequence.seq++;
    this.#finish(sequence, "stop");
  }

  /** One more token of the answer. @returns whether it goes on. */
  #say(sequence: Sequence, id: number): boolean {
    return this.#release(sequence, sequence.speaker.take(id, sequence.seq + 1 > sequence.minTokens));
  }

  #release(sequence: Sequence, release: Release): boolean {
    const seq = ++sequence.seq;
    this.#tell(sequence, release);
    const goesOn = !release.stopped && seq < sequence.maxTokens;
    // The listener may have cancelled; that it paused does not keep what is over.
    if (!goesOn && sequence.state !== "ending" && sequence.state !== "over") this.#finish(sequence, release.stopped ? "stop" : "length");
    return goesOn;
  }

  #tell(sequence: Sequence, { text, ids, ends }: Release): void {
    if (ids.length === 0) return;
    sequence.told += ids.length;
    sequence.listener.tokens({ seq: sequence.told, text, ids, ends });
  }

  #finish(sequence: Sequence, reason: FinishReason): void {
    this.#leave(sequence, "over");
    const rest = sequence.speaker.end();
    if (rest && reason !== "cancelled") this.#tell(sequence, rest);
    const { submittedMs, startedMs, firstMs } = sequence;
    const now = performance.now();
    sequence.listener.finished({
      seq: sequence.seq,
      reason,
      cachedTokens: 0,
      queueMs: (startedMs ?? now) - submittedMs,
      prefillMs: startedMs === undefined || firstMs === undefined ? 0 : firstMs - startedMs,
      decodeMs: firstMs === undefined ? 0 : now - firstMs,
    });
  }

  #cancel(sequence: Sequence): void {
    if (sequence.state === "ending" || sequence.state === "over") return;
    this.#leave(sequence, "ending");
    setImmediate(() => {
      if (sequence.state === "ending") this.#finish(sequence, "cancelled");
    });
  }

  /** Its slot is free for others meanwhile. */
  #pause(sequence: Sequence): void {
    if (sequence.state !== "waiting" && sequence.state !== "running") return;
    this.#leave(sequence, "paused");
    this.#paused.add(sequence);
  }

  #resume(sequence: Sequence): void {
    if (sequence.state !== "paused") return;
    this.#leave(sequence, "waiting");
    this.#waiting.add(sequence);
    this.#wheel.wake();
  }

  #leave(sequence: Sequence, state: Sequence["state"]): void {
    sequence.state = state;
    this.#wheel.delete(sequence);
    this.#waiting.delete(sequence);
    this.#paused.delete(sequence);
  }
}
