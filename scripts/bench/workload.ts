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
  /** From the moment when every sequence has its first token, all sequences together. */
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

/** Times the decoding of several sequences that run at once. */
export class DecodeMeter {
  readonly #counts: number[];
  readonly #startedMs: number;
  #begun = 0;
  #total = 0;
  #totalAtBegin = 0;
  #begunMs = 0;
  #lastMs = 0;

  constructor(
    sequences: number,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.#counts = new Array<number>(sequences).fill(0);
    this.#startedMs = now();
  }

  /** Sequence `index` has `count` tokens by now. */
  reached(index: number, count: number): void {
    const before = this.#counts[index] as number;
    this.#counts[index] = count;
    this.#total += count - before;
    this.#lastMs = this.now();
    if (before > 0 || count === 0 || ++this.#begun < this.#counts.length) return;
    this.#begunMs = this.#lastMs;
    this.#totalAtBegin = this.#total;
  }

  /** @param promptTokens of each sequence. */
  rates(promptTokens: number): DecodeRates {
    const decode = (1_000 * (this.#total - this.#totalAtBegin)) / (this.#lastMs - this.#begunMs);
    // The first token comes out of the prefill, so the work done is one step less than the tokens.
    const work = this.#counts.length * (promptTokens - 1) + this.#total;
    return { decode, whole: (1_000 * work) / (this.#lastMs - this.#startedMs) };
  }
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
