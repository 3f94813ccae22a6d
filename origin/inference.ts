/** The seam that hides engines. Two stand behind it: the native engine, and a simulated one that must be asked for by name. */
import type { FinishReason } from "../shared/protocol.js";

export interface Inference {
  readonly kind: "native" | "simulated";
  readonly model: InferenceModel;
  /**
   * Begins an answer. The listener's calls come in order, never inside this call, and end with exactly one of `finished` or `failed`.
   * @throws MillraceError `context_exceeded` or `overloaded`, at once.
   */
  submit(request: InferenceRequest, listener: InferenceListener): InferenceHandle;
  load(): InferenceLoad;
  close(): Promise<void>;
}

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
}

export interface InferenceListener {
  /** Waiting for a slot; `place` 1 is the next to run. */
  queued(place: number): void;
  /** Tokens up to `seq` are released with this text (whole code points, perhaps none). */
  tokens(seq: number, text: string): void;
  finished(end: InferenceEnd): void;
  /** The engine ended the answer for a reason of its own. */
  failed(why: string): void;
}

export interface InferenceEnd {
  /** Every sampled token counts, the end-of-turn token too. */
  seq: number;
  reason: FinishReason;
  queueMs: number;
  prefillMs: number;
  decodeMs: number;
}

export interface InferenceHandle {
  /** Ends the answer with reason `cancelled`; no tokens follow. After the end it does nothing. */
  cancel(): void;
}

export interface InferenceLoad {
  running: number;
  waiting: number;
  slots: number;
  kvBytesMapped: number;
  kvBytesMax: number;
}
