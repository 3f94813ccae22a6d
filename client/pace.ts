/** What a reader felt of one answer's speed, in milliseconds of the reader's own monotonic clock. */
export interface Measures {
  /** From START to the first text; undefined until there is some. */
  firstTokenMs: number | undefined;
  /** Tokens that have arrived, those without text of their own included. */
  tokens: number;
  /** After the first text; undefined until a second frame has come. */
  tokensPerSecond: number | undefined;
  /** The wait before a token, median and 99th percentile. Tokens of one frame wait once: the others' gaps are 0. */
  gapP50Ms: number | undefined;
  gapP99Ms: number | undefined;
}

/** Measures arrivals. Owns no clock: the caller says when. */
export class Pace {
  #firstMs: number | undefined;
  #firstTokens = 0;
  #lastMs = 0;
  #tokens = 0;
  readonly #gapsMs: number[] = [];

  constructor(private readonly startedMs: number) {}

  /** A frame brought the answer to `tokens` tokens at `nowMs`. */
  arrived(tokens: number, nowMs: number): void {
    if (this.#firstMs === undefined) {
      this.#firstMs = nowMs;
      this.#firstTokens = tokens;
    } else {
      this.#gapsMs.push(nowMs - this.#lastMs);
    }
    this.#lastMs = nowMs;
    this.#tokens = tokens;
  }

  measures(): Measures {
    const later = this.#tokens - this.#firstTokens;
    const sorted = this.#gapsMs.toSorted((a, b) => a - b);
    const seconds = (this.#lastMs - (this.#firstMs ?? 0)) / 1_000;
    return {
      firstTokenMs: this.#firstMs === undefined ? undefined : this.#firstMs - this.startedMs,
      tokens: this.#tokens,
      tokensPerSecond: sorted.length > 0 && seconds > 0 ? later / seconds : undefined,
      gapP50Ms: percentile(sorted, later, 0.5),
      gapP99Ms: percentile(sorted, later, 0.99),
    };
  }
}

/** The nearest-rank percentile of `count` gaps, of which all but the `sorted` ones are 0. */
function percentile(sorted: readonly number[], count: number, fraction: number): number | undefined {
  if (sorted.length === 0) return undefined;
  const zeros = Math.max(0, count - sorted.length);
  const rank = Math.ceil(fraction * (zeros + sorted.length)) - 1;
  return rank < zeros ? 0 : sorted[rank - zeros];
}
