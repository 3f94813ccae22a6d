/**
 * An inference that emits words on a clock, for load tests of everything but the engine. Each token is a hash of all tokens before
 * it, the prompt's included: the same prompt gives the same answer, and two prompts' answers can be told apart.
 */
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import type { Admission, FinishReason } from "../shared/protocol.js";
import { bounds } from "./bounds.js";
import { TokenType, type Vocabulary } from "./chat/vocabulary.js";
import type { Inference, InferenceHandle, InferenceListener, InferenceLoad, InferenceModel, InferenceRequest } from "./inference.js";
import { StopFilter } from "./stops.js";

export interface SimulatedOptions {
  /** Of each running answer. */
  tokensPerSecond: number;
  /** An answer ends by itself with this token, as if it were the end of the turn. */
  answerTokens: number;
  slots: number;
  contextTokens: number;
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
  return { inference: new SimulatedInference({ tokensPerSecond, answerTokens, slots, contextTokens }), vocabulary: simulatedVocabulary() };
}

/** A timer that fires late is made up for with at most this many steps. */
const catchUpStepsMax = 64;

interface Sequence {
  readonly request: InferenceRequest;
  readonly listener: InferenceListener;
  readonly stops: StopFilter;
  readonly submittedMs: number;
  startedMs: number;
  firstMs: number;
  hash: number;
  seq: number;
  /** Text of a token that, like half a code point, is released with the next one, and lost if there is none. */
  late: string;
  place: number;
}

export class SimulatedInference implements Inference {
  readonly kind = "simulated";
  readonly model: InferenceModel;
  readonly #running = new Set<Sequence>();
  readonly #waiting = new Set<Sequence>();
  readonly #stepMs: number;
  #timer: NodeJS.Timeout | undefined;
  #lastStepMs = 0;
  #closed = false;

  constructor(private readonly options: SimulatedOptions) {
    this.model = { name: "simulated", contextTokens: options.contextTokens, runsOn: "a clock" };
    this.#stepMs = 1_000 / options.tokensPerSecond;
  }

  submit(request: InferenceRequest, listener: InferenceListener): InferenceHandle {
    const total = request.prompt.length + request.maxTokens;
    if (total > this.model.contextTokens)
      throw new MillraceError("context_exceeded", `${total} tokens are over the context of ${this.model.contextTokens}`);
    if (this.#waiting.size >= limits.waitingMax)
      throw new MillraceError("overloaded", `${this.#waiting.size} requests wait for a slot already`, bounds.retryAfterMs);
    if (request.logprobs !== undefined)
      throw new MillraceError("field_invalid", "logprobs are asked for, but the simulated inference has no model and so none");
    if (this.#closed) throw new MillraceError("draining", "the simulated inference is closed");
    const now = performance.now();
    const sequence: Sequence = {
      request,
      listener,
      stops: new StopFilter(request.stop),
      submittedMs: now,
      startedMs: now,
      firstMs: now,
      hash: request.prompt.reduce(fold, 0x811c9dc5),
      seq: 0,
      late: "",
      place: 0,
    };
    this.#waiting.add(sequence);
    if (this.#timer === undefined) {
      this.#lastStepMs = now;
      this.#schedule();
    }
    return { admission: this.#admission(request), cancel: () => this.#cancel(sequence) };
  }

  async compile(): Promise<never> {
    throw new MillraceError("field_invalid", "a format is asked for, but the simulated inference has no model to hold to it");
  }

  load(): InferenceLoad {
    return {
      running: this.#running.size,
      waiting: this.#waiting.size,
      slots: this.options.slots,
      kvBytesMapped: 0,
      kvBytesMax: 0,
      misses: {},
    };
  }

  /** A clock keeps what it can; who finds no slot waits as long as whole answers take. */
  #admission({ deadlines: { ttftMs, itlMs } }: InferenceRequest): Admission {
    const ahead = this.#running.size + this.#waiting.size - this.options.slots;
    if (ahead > 0) return { waitMs: Math.ceil(ahead / this.options.slots) * this.options.answerTokens * this.#stepMs };
    return { ttftMs: Math.max(ttftMs, 2 * this.#stepMs), itlMs: Math.max(itlMs, this.#stepMs) };
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    for (const sequence of [...this.#running, ...this.#waiting]) {
      this.#forget(sequence);
      sequence.listener.failed("the simulated inference was closed while it answered");
    }
  }

  #schedule(): void {
    this.#timer = setTimeout(() => this.#tick(), Math.max(0, this.#lastStepMs + this.#stepMs - performance.now()));
  }

  #tick(): void {
    const now = performance.now();
    const due = Math.floor((now - this.#lastStepMs) / this.#stepMs);
    const steps = Math.min(due, catchUpStepsMax);
    this.#lastStepMs = due > steps ? now : this.#lastStepMs + due * this.#stepMs;
    for (let step = 0; step < steps; step++) this.#step(now);
    this.#timer = undefined;
    if (this.#running.size + this.#waiting.size > 0) this.#schedule();
  }

  #step(now: number): void {
    for (const sequence of this.#waiting) {
      if (this.#running.size >= this.options.slots) break;
      this.#waiting.delete(sequence);
      this.#running.add(sequence);
      sequence.startedMs = now;
    }
    let place = 0;
    for (const sequence of this.#waiting) {
      place++;
      if (sequence.place !== place) sequence.listener.queued(place);
      sequence.place = place;
    }
    for (const sequence of this.#running) this.#advance(sequence, now);
  }

  #advance(sequence: Sequence, now: number): void {
    const seq = ++sequence.seq;
    if (seq === 1) sequence.firstMs = now;
    const { minTokens, ignoreEos } = sequence.request;
    if (seq >= this.options.answerTokens && seq > minTokens && !ignoreEos) this.#finish(sequence, "stop", now);
    else this.#speak(sequence, seq, now);
  }

  #speak(sequence: Sequence, seq: number, now: number): void {
    const id = scramble(sequence.hash) % words.length;
    sequence.hash = fold(sequence.hash, id);
    const word = words[id] as string;
    const isLate = word.startsWith(lateMark);
    const piece = sequence.late + (isLate ? "" : word);
    sequence.late = isLate ? word.slice(lateMark.length) : "";
    const mayStop = seq > sequence.request.minTokens;
    const released = mayStop ? sequence.stops.push(seq, piece) : { seq, text: piece, stopped: false };
    if (released.text !== "") sequence.listener.tokens(released.seq, released.text);
    // The listener may have cancelled.
    if (!this.#running.has(sequence)) return;
    if (released.stopped) this.#finish(sequence, "stop", now);
    else if (seq >= sequence.request.maxTokens) this.#finish(sequence, "length", now);
  }

  #finish(sequence: Sequence, reason: FinishReason, now: number): void {
    this.#forget(sequence);
    const rest = sequence.stops.end();
    if (rest !== "" && reason !== "cancelled") sequence.listener.tokens(sequence.seq, rest);
    sequence.listener.finished({
      seq: sequence.seq,
      reason,
      cachedTokens: 0,
      queueMs: sequence.startedMs - sequence.submittedMs,
      prefillMs: sequence.firstMs - sequence.startedMs,
      decodeMs: now - sequence.firstMs,
    });
  }

  #cancel(sequence: Sequence): void {
    if (!this.#running.has(sequence) && !this.#waiting.has(sequence)) return;
    this.#forget(sequence);
    setImmediate(() => this.#finish(sequence, "cancelled", performance.now()));
  }

  #forget(sequence: Sequence): void {
    this.#running.delete(sequence);
    this.#waiting.delete(sequence);
  }
}

/** FNV-1a over token ids. */
function fold(hash: number, id: number): number {
  return Math.imul(hash ^ id, 0x01000193) >>> 0;
}

/** The finalizer of MurmurHash3: every bit of the hash decides on the word. */
function scramble(hash: number): number {
  let mixed = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}

/** Before a word whose text comes with the token after it. */
const lateMark = "\0";

const words = (
  " the| a| mill| race| water| wheel| turns| slowly| quickly| under| over| old| new| stone| stones| river| bridge| and| but| then" +
  "| once| again| grain| flour| baker| bread| morning| evening| light| shadow| bell| rope| gate| opens| closes| hears| sees| runs" +
  "| waits| for| with| without| its| her| his| their|ing|ed|s|ly|,|.|;|\n| caf\u00e9| M\u00fchle| \u6c34\u8eca| \u043c\u0435\u043b\u044c\u043d\u0438\u0446\u0430| \u0637\u0627\u062d\u0648\u0646\u0629" +
  "| \u{1f30a}| \u{1f468}\u200d\u{1f33e}|\0 \u{1f33e}|\0 \u00e9|\0 \u6c34"
).split("|");

/** A vocabulary of bytes and the ChatML template: what the simulated inference reads prompts with. No model's file is needed. */
export function simulatedVocabulary(): Vocabulary {
  const controls = ["<|im_start|>", "<|im_end|>"];
  const tokens = [...controls, ...byteLevelAlphabet()];
  return {
    kind: "gpt2",
    preTokenizer: "gpt-2",
    tokens,
    types: tokens.map((_, id) => (id < controls.length ? TokenType.control : TokenType.normal)),
    scores: [],
    merges: [],
    chatTemplate:
      "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}" +
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    bosToken: 0,
    eosToken: 1,
    unknownToken: -1,
    addBos: false,
    addSpacePrefix: false,
  };
}

/** Byte-level BPE writes a byte as a printable character: itself where Latin-1 prints it, else one from U+0100 on. */
function byteLevelAlphabet(): string[] {
  const isPrintable = (byte: number): boolean => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(isPrintable(byte) ? byte : next++));
}
