/** What every contender is given, and what each must be able to do. */
export const workload = {
  /** Tokens of the prompt whose prefill is timed. */
  prefillTokens: 512,
  /** Decoding: each sequence has a prompt of this many tokens and generates as many as follow. */
  promptTokens: 64,
  generatedTokens: 64,
  batches: [1, 8, 32],
  /** Of one sequence; every prompt and its answer fit. */
  contextTokens: 640,
} as const;

/** Tokens a second. */
export interface DecodeRates {
  /** All sequences together, while all of them run: from the step in which the last has its first token to that in which the first ends. */
  decode: number;
  /** Prompts and answers together, from the first submit to the last event. */
  whole: number;
}

export interface Contender {
  name: string;
  /** What it chose: kernels, version, settings. A line each. */
  about: string[];
  /** Tokens a second of one prompt of `prefillTokens`. */
  prefill(): Promise<number>;
  decode(batch: number): Promise<DecodeRates>;
  /** Most resident memory of the process that did the work, so far, in bytes. */
  peakBytes(): number;
  close(): Promise<void>;
}

/** Times the decoding of several sequences that run at once. What is reached in one turn of the event loop is one step's. */
export class DecodeMeter {
  readonly #counts: number[];
  readonly #startedMs: number;
  #settles = false;
  #begun: Mark | undefined;
  #ended: Mark | undefined;
  #lastMs = 0;

  /** @param tokens of each sequence, the first included. */
  constructor(
    sequences: number,
    private readonly tokens: number,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.#counts = new Array<number>(sequences).fill(0);
    this.#startedMs = now();
  }

  /** Sequence `index` has `count` tokens by now. */
  reached(index: number, count: number): void {
    this.#counts[index] = count;
    if (this.#settles) return;
    this.#settles = true;
    queueMicrotask(() => this.#settle());
  }

  #settle(): void {
    this.#settles = false;
    this.#lastMs = this.now();
    const mark = { ms: this.#lastMs, total: this.#counts.reduce((sum, count) => sum + count, 0) };
    if (this.#counts.every((count) => count > 0)) this.#begun ??= mark;
    if (this.#counts.some((count) => count >= this.tokens)) this.#ended ??= mark;
  }

  /** @param promptTokens of each sequence. @throws NeverFullError where the first ended before the last had begun. */
  rates(promptTokens: number): DecodeRates {
    if (this.#settles) this.#settle();
    const [begun, ended] = [this.#begun, this.#ended];
    if (!begun || !ended || ended.ms <= begun.ms)
      throw new NeverFullError(
        `of ${this.#counts.length} sequences the first ended before the last had begun: there is no time when all ran`,
      );
    const total = this.#counts.reduce((sum, count) => sum + count, 0);
    // The first token comes out of the prefill, so the work done is one step less than the tokens.
    const work = this.#counts.length * (promptTokens - 1) + total;
    return {
      decode: (1_000 * (ended.total - begun.total)) / (ended.ms - begun.ms),
      whole: (1_000 * work) / (this.#lastMs - this.#startedMs),
    };
  }
}

export class NeverFullError extends Error {
  override readonly name = "NeverFullError";
}

/** The end of a step: when, and how many tokens there were. */
interface Mark {
  ms: number;
  total: number;
}

/** By linear interpolation between the two nearest. @param fraction 0 to 1. */
export function quantile(values: readonly number[], fraction: number): number {
  const sorted = Float64Array.from(values).sort();
  const at = fraction * (sorted.length - 1);
  const below = sorted[Math.floor(at)] as number;
  return below + (at % 1) * ((sorted[Math.ceil(at)] as number) - below);
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}
