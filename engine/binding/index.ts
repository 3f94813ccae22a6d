/**
 * The engine's typed face. It checks every argument, so that the C++ below sees clean input, and reads the flat buffer in which each
 * step's events arrive. Nothing here blocks the event loop: loading, decoding and closing happen on threads of the engine's own.
 */
import { createRequire } from "node:module";
import { checkLoadOptions, checkPath, checkRequest, checkTokens, EngineError } from "./checks.js";
import { type EngineEvent, readEvents } from "./events.js";
import { Listeners } from "./listeners.js";

export { EngineError } from "./checks.js";
export type { EngineEvent, FinishReason, TokenLogprobs } from "./events.js";

/** Kernels: a Hopper GPU's where there is one and else the CPU's best (`auto`), the CPU's best (`cpu`), plain C++ (`reference`), or one by name. */
export const kernelSets = ["auto", "cpu", "reference", "avx2", "avx512", "hopper"] as const;
export type KernelSet = (typeof kernelSets)[number];

/** Keys and values in float16 (on a GPU bfloat16), or in 8 bits with a float16 scale for each token and head (on a GPU E4M3, with scales from the weights). */
export type KvType = "f16" | "q8";

export interface LoadOptions {
  /** A GGUF v3 file, any part of a split one, or a folder as Hugging Face has them. */
  path: string;
  /** Threads that compute, the engine's own included. Default: what affinity and the cgroup's cpu.max allow. */
  threads?: number;
  /** Most positions of one sequence. Default: the model's own, at most 8,192. */
  contextTokens?: number;
  /** Ceiling of KV memory. Default: computed from the cgroup's limit and MemAvailable. */
  kvMemoryBytes?: number;
  /** Sequences decoded at once. Default 32. */
  slots?: number;
  kernels?: KernelSet;
  /** `fp8`, on a GPU, keeps matrices in E4M3 with a scale for each row, but for the embedding and the LM head. `float32` dequantizes the weights at load and keeps activations and KV in float32: the yardstick, slow and large. */
  precision?: "stored" | "fp8" | "float32";
  /** On a GPU, logits of the same bits in any company, more slowly; a CPU has them always. Default false. */
  deterministic?: boolean;
  /** Default `f16`. Of no effect where the precision is float32. */
  kvType?: KvType;
  /** Keeps what ended requests computed, for those that begin with the same tokens. Default true. */
  prefixCache?: boolean;
}

export interface ModelInfo {
  /** The file's name without its ending: what a person calls the model. */
  name: string;
  architecture: string;
  parameters: number;
  contextTokens: number;
  vocabularySize: number;
  kernels: Exclude<KernelSet, "auto" | "cpu">;
  /** The GPU's name; empty on a CPU. */
  device: string;
  threads: number;
  /** Ids that end an answer. */
  stopTokens: number[];
  /** What was chosen at load and why, a line each. */
  log: string[];
  /** Whether the addon was built with constrained output. */
  hasFormats: boolean;
  work: MatrixWork;
}

/** What the model's matrices ask of a step. Of experts, those that one token uses. */
export interface MatrixWork {
  /** Read by a step, as they are packed. */
  weightBytes: number;
  /** By each token. */
  tokenMultiplyAdds: number;
  /** By each token that is sampled, beside those. */
  sampleMultiplyAdds: number;
}

/** What a tokenizer is built from, as the model's file has it. */
export interface Vocabulary {
  /** `gpt2`: byte-level BPE with merges. `llama`: SentencePiece with scores. `none`: a folder without a tokenizer, for token ids alone. */
  kind: string;
  /** The pre-tokenizer's name, e.g. `smollm`, `llama-bpe`, `qwen2`. */
  preTokenizer: string;
  tokens: string[];
  /** Per token: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte. */
  types: Int32Array;
  scores: Float32Array;
  merges: string[];
  chatTemplate: string;
  /** Hugging Face's tokenizer.json, where the model came with one: the tokenizer is then this one, not made of what is above. */
  tokenizerJson?: string;
  /** -1 where the file names none. */
  bosToken: number;
  eosToken: number;
  unknownToken: number;
  addBos: boolean;
  addSpacePrefix: boolean;
}

/** What an answer must be: JSON by a schema, text that a regular expression matches as a whole, or a grammar in GBNF with the rule `root`. */
export interface Format {
  kind: "json_schema" | "regex" | "grammar";
  text: string;
}

/** A format compiled by one engine, for its requests. */
export interface Grammar {
  readonly engine: Engine;
  /** The addon's. */
  readonly handle: unknown;
}

export interface GenerateRequest {
  prompt: Int32Array;
  /** Tokens that the answer has already, sampled elsewhere: they count as generated, and are told first, as any others. Default: none. */
  continueIds?: Int32Array;
  /** Most tokens of the answer; prompt plus this must fit the context. */
  maxTokens: number;
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  presencePenalty: number;
  frequencyPenalty: number;
  /** 0 to 2^53 - 1. */
  seed: number;
  stop: string[];
  /** No end-of-turn token is sampled before so many others, and no stop string found in their text. Default 0. */
  minTokens?: number;
  /** End-of-turn tokens are tokens like others. Default false. */
  ignoreEos?: boolean;
  /** Added to the logits of these token ids, before penalties; at most 1,024, -100 to 100. */
  logitBias?: Readonly<Record<number, number>>;
  /** Each token is told with its own log-probability and those of so many likeliest, 0 to 20. Default: without. */
  logprobs?: number;
  /** Of this engine's `compile`. It alone says where the answer may begin and end: not with minTokens, ignoreEos or continueIds. */
  grammar?: Grammar;
  /** Whose line it waits in. Default `chat`. */
  service?: "voice" | "chat" | "batch";
  /** The first token is asked for within this of `submit`. Default 2,000. */
  ttftMs?: number;
  /** Each later token is due this after the one before it was. Default 150. */
  itlMs?: number;
  /** How long it would rather wait than be refused; 0: not at all. Default: without end. */
  waitMs?: number;
  /** Tenants of one class share it by weight. An unsigned 32-bit number; default 0. */
  tenant?: number;
  tenantWeight?: number;
}

/** What was answered to a request that was not refused: a promise, or the wait that is expected before one can be made. */
export type Admission = { ttftMs: number; itlMs: number } | { waitMs: number };

export interface EngineStats {
  running: number;
  waiting: number;
  slots: number;
  kvBytesMapped: number;
  /** Of those, by keys and values of tokens: the rest is ends of pages, padding and what is mapped ahead. As of the last second. */
  kvBytesHeld: number;
  /** To those that run: what they have and may yet need. */
  kvBytesPromised: number;
  kvBytesMax: number;
  steps: number;
  tokens: number;
  /** Computed, so without those that were cached; those that answers were continued with are among them. */
  promptTokens: number;
  /** Requests that found some of their prompt in memory, tokens they found, and tokens that were given up for others. */
  prefixCache: { hits: number; hitTokens: number; evictedTokens: number };
  /** Tokens that came after they were due, by what held them up. */
  misses: { queueing: number; prefill: number; stepTime: number; mapping: number; reader: number };
  /** The fitted model of step time: microseconds a step, and for each of its rows, tokens computed, tokens sampled, positions read, and pairs of a prompt's token and a position. */
  stepCosts: { stepUs: number; rowUs: number; tokenUs: number; sampleUs: number; contextUs: number; pairUs: number };
}

/** What the addon exports; `engine/binding/addon.cpp` is its other side. */
interface NativeEngine {
  info(): ModelInfo;
  vocabulary(): Vocabulary;
  compile(kind: Format["kind"], text: string): Promise<unknown>;
  submit(id: number, request: Omit<GenerateRequest, "grammar"> & { continueIds: Int32Array; grammar: unknown }): Admission;
  cancel(id: number): void;
  pause(id: number): void;
  resume(id: number): void;
  stats(): EngineStats;
  /** Logits of every position, `[tokens][vocabulary]`, computed on the engine's thread. */
  evaluate(tokens: Int32Array, chunkTokens: number): Promise<Float32Array>;
  /** Whether steps to come keep the process alive. */
  holdOpen(hold: boolean): void;
  close(): Promise<void>;
}

interface Addon {
  load(options: LoadOptions, onStep: (events: Uint8Array) => void): Promise<NativeEngine>;
  readVocabulary(path: string): Promise<Vocabulary>;
}

export class Engine {
  readonly info: ModelInfo;
  #nextRequest = 1;
  #closing: Promise<void> | undefined;

  private constructor(
    private readonly native: NativeEngine,
    private readonly listeners: Listeners,
  ) {
    this.info = native.info();
  }

  /** Loads a model without blocking the event loop. @throws EngineError saying what is wrong with the file or the options. */
  static async load(options: LoadOptions): Promise<Engine> {
    checkLoadOptions(options);
    let native: NativeEngine | undefined;
    const listeners = new Listeners((busy) => native?.holdOpen(busy));
    const onStep = (bytes: Uint8Array): void => {
      for (const event of readEvents(bytes)) listeners.tell(event);
    };
    try {
      native = await addon().load(options, onStep);
      return new Engine(native, listeners);
    } catch (error) {
      throw asEngineError(error);
    }
  }

  /**
   * Reads what a model's tokenizer is made of, and no weights, without blocking the event loop.
   * @param path as LoadOptions has it. @throws EngineError saying what is wrong with the file.
   */
  static async readVocabulary(path: string): Promise<Vocabulary> {
    checkPath(path);
    try {
      return await addon().readVocabulary(path);
    } catch (error) {
      throw asEngineError(error);
    }
  }

  vocabulary(): Vocabulary {
    return this.native.vocabulary();
  }

  /** Compiles a format on another thread, or finds it among those compiled of late. @throws EngineError saying what is wrong with it. */
  async compile({ kind, text }: Format): Promise<Grammar> {
    if (kind !== "json_schema" && kind !== "regex" && kind !== "grammar")
      throw new EngineError(`the format's kind is ${JSON.stringify(kind)}, not "json_schema", "regex" or "grammar"`);
    try {
      return { engine: this, handle: await this.native.compile(kind, text) };
    } catch (error) {
      throw asEngineError(error);
    }
  }

  /**
   * Queues a request and returns its number. `listener` is called for each of its events, the last of which is `finished`, also after
   * `cancel` and `close`. @throws EngineError for a request that cannot fit the context, or, with `retryAfterMs`, whose deadlines cannot be
   * promised now and which would not wait.
   */
  submit(request: GenerateRequest, listener: (event: EngineEvent) => void): number {
    return this.offer(request, listener).id;
  }

  /** As `submit`, and says what is promised. */
  offer(request: GenerateRequest, listener: (event: EngineEvent) => void): { id: number; admission: Admission } {
    checkRequest(request, this.info);
    if (request.grammar && request.grammar.engine !== this) throw new EngineError("the request's grammar was compiled by another engine");
    if (this.#closing) throw new EngineError("the engine is closed");
    const id = this.#nextRequest++;
    let admission: Admission;
    try {
      const { continueIds = new Int32Array(), grammar } = request;
      admission = this.native.submit(id, { ...request, continueIds, grammar: grammar?.handle });
    } catch (error) {
      throw asEngineError(error);
    }
    // Events arrive in later turns of the loop, so none can come before its listener is known.
    this.listeners.add(id, listener);
    return { id, admission };
  }

  /** Ends a request wherever it stands; no token follows its `finished`. A number that is not running is ignored. */
  cancel(request: number): void {
    if (!this.#closing) this.native.cancel(request);
  }

  /**
   * Its reader takes nothing for now: tokens of the step under way may still come, then none until `resume`. Others may have its slot
   * meanwhile. A number that is not running is ignored.
   */
  pause(request: number): void {
    if (!this.#closing) this.native.pause(request);
  }

  /** It goes on with the token that it would have had. */
  resume(request: number): void {
    if (!this.#closing) this.native.resume(request);
  }

  stats(): EngineStats {
    return this.native.stats();
  }

  /**
   * Teacher-forced logits of every position, float32 `[tokens.length][vocabularySize]`.
   * @param chunkTokens positions computed in one step; the result does not depend on it.
   */
  async evaluate(tokens: Int32Array, chunkTokens = 128): Promise<Float32Array> {
    checkTokens(tokens, this.info);
    if (!Number.isInteger(chunkTokens) || chunkTokens < 1) throw new EngineError(`chunkTokens is ${chunkTokens}, not an integer from 1`);
    try {
      return await this.native.evaluate(tokens, chunkTokens);
    } catch (error) {
      throw asEngineError(error);
    }
  }

  /** Ends all work and frees the model. Settles when each request has been told its `finished`. Safe to call twice. */
  close(): Promise<void> {
    // The addon's promise and the last steps come by different ways, in either order.
    this.#closing ??= this.native.close().then(() => this.listeners.idle());
    return this.#closing;
  }
}

function addon(): Addon {
  const path = new URL("../build/millrace.node", import.meta.url);
  try {
    return createRequire(import.meta.url)(path.pathname) as Addon;
  } catch (error) {
    throw new EngineError(`the engine is not built or cannot be loaded (${String(error)}); build it with: npm run build`);
  }
}

function asEngineError(error: unknown): EngineError {
  if (error instanceof EngineError) return error;
  if (!(error instanceof Error)) return new EngineError(String(error));
  return new EngineError(error.message, (error as { retryAfterMs?: number }).retryAfterMs);
}
