/** The seam that hides engines. Two stand behind it: the native engine, and a simulated one that must be asked for by name. */
import type { ClassName, ServiceClass } from "../shared/classes.js";
import type { Admission, FinishReason, Format } from "../shared/protocol.js";

export interface Inference {
  readonly kind: "native" | "simulated";
  readonly model: InferenceModel;
  /**
   * Begins an answer. The listener's calls come in order, never inside this call, and end with exactly one of `finished` or `failed`.
   * @throws MillraceError `context_exceeded`, `overloaded`, or `field_invalid` for what this inference cannot do; at once.
   */
  submit(request: InferenceRequest, listener: InferenceListener): InferenceHandle;
  /** What `submit` takes as its format. @throws MillraceError `field_invalid`, saying what is wrong with it. */
  compile(format: Format): Promise<CompiledFormat>;
  load(): InferenceLoad;
  close(): Promise<void>;
}

/** Known to the inference that made it. */
export type CompiledFormat = object;

export interface InferenceModel {
  name: string;
  /** What computes it, for a person: `avx512, 2 threads`. */
  runsOn: string;
  contextTokens: number;
}

export interface InferenceRequest {
  /** Token ids. */
  prompt: Int32Array;
  maxTokens: number;
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  presencePenalty: number;
  frequencyPenalty: number;
  seed: number;
  stop: string[];
  /** No end of its own before so many tokens. */
  minTokens: number;
  ignoreEos: boolean;
  /** By token id. */
  logitBias: Readonly<Record<number, number>>;
  /** How many likeliest tokens are told with each; undefined: no log-probabilities at all. */
  logprobs: number | undefined;
  format: CompiledFormat | undefined;
  /** Tokens that the answer has already, sampled elsewhere: they count as generated. */
  continueIds: Int32Array;
  /** Whose line it waits in. */
  class: ClassName;
  /** Asked for, counted from `submit`. */
  deadlines: ServiceClass;
  /** Tenants of one class share the engine by weight. */
  tenant: string;
  tenantWeight: number;
}

/** Of the model's own distribution, before bias, penalties and temperature. */
export interface TokenLogprobs {
  id: number;
  logprob: number;
  /** In falling order. */
  top: { id: number; logprob: number }[];
}

/** Tokens that may be shown now. Those of `continueIds` come first, as any others. */
export interface Released {
  /** Of the last. */
  seq: number;
  /** Whole code points, perhaps none. */
  text: string;
  ids: readonly number[];
  /** Where the text of each ends, in bytes of `text` as UTF-8; the last is all of it. */
  ends: readonly number[];
  /** One each, where asked for. */
  logprobs?: readonly TokenLogprobs[];
}

export interface InferenceListener {
  /** Waiting for a slot; `place` 1 is the next to run. */
  queued(place: number): void;
  tokens(released: Released): void;
  finished(end: InferenceEnd): void;
  /** The engine ended the answer for a reason of its own. */
  failed(why: string): void;
}

export interface InferenceEnd {
  /** Every sampled token counts, the end-of-turn token and `continueIds` too. */
  seq: number;
  reason: FinishReason;
  /** Of the prompt's tokens, those that were in memory already. */
  cachedTokens: number;
  queueMs: number;
  prefillMs: number;
  decodeMs: number;
}

export interface InferenceHandle {
  /** Counted from `submit`. */
  readonly admission: Admission;
  /** Ends the answer with reason `cancelled`; no tokens follow. After the end it does nothing. */
  cancel(): void;
  /** Nobody takes its tokens for now: one may still come, then none until `resume`. Others may have its place meanwhile. */
  pause(): void;
  /** It goes on with the token that it would have had. */
  resume(): void;
}

export interface InferenceLoad {
  running: number;
  waiting: number;
  slots: number;
  kvBytesMapped: number;
  kvBytesHeld: number;
  kvBytesMax: number;
  /** Tokens that came after they were due, by what held them up. */
  misses: Readonly<Record<string, number>>;
}
