/** What a reader felt of one answer's speed, in milliseconds of the reader's own monotonic clock. */
export interface Measures {
  /** From asking to the first text; undefined until there is some, and for an answer that was asked in an earlier page. */
  firstTokenMs: number | undefined;
  /** Of the time from START to the first token, what the origin did not account for: the way there and back. Known at the end. */
  networkMs: number | undefined;
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
  #sentMs: number | undefined;
  #firstMs: number | undefined;
  #firstTokens = 0;
  #lastMs = 0;
  #tokens: number;
  #networkMs: number | undefined;
  readonly #gapsMs: number[] = [];

  /** @param askedMs undefined where the question was asked in another page. @param tokens that came before. */
  constructor(
    private readonly askedMs: number | undefined,
    tokens = 0,
  ) {
    this.#tokens = tokens;
  }

  /** A START went out that was not sent before. */
  sent(nowMs: number): void {
    if (this.#firstMs === undefined) this.#sentMs = nowMs;
  }

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

  /** The origin told which part of the first token's wait, in milliseconds, was its own. Durations are compared, never clocks. */
  explained(originMs: number): void {
    if (this.#firstMs !== undefined && this.#sentMs !== undefined) this.#networkMs = Math.max(0, this.#firstMs - this.#sentMs - originMs);
  }

  measures(): Measures {
    const later = this.#tokens - this.#firstTokens;
    const sorted = this.#gapsMs.toSorted((a, b) => a - b);
    const seconds = (this.#lastMs - (this.#firstMs ?? 0)) / 1_000;
    return {
      firstTokenMs: this.#firstMs === undefined || this.askedMs === undefined ? undefined : this.#firstMs - this.askedMs,
      networkMs: this.#networkMs,
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
