/** How well models predict a text, and how far each stands from the first of them: the yardstick. */
import type { Part } from "../setup/progress.js";

/** Anything that gives teacher-forced logits of a window: this engine in some configuration, or another. */
export interface LogitSource {
  name: string;
  /** @returns float32 `[tokens.length][vocabulary]`, in memory that the next call may reuse. */
  logits(tokens: Int32Array): Promise<Float32Array>;
  close(): Promise<void>;
}

export interface Score {
  name: string;
  /** Positions that were scored. */
  positions: number;
  /** exp of the mean of -ln p(next token), over the scored positions. */
  perplexity: number;
  /** Over all positions computed, scored or not. */
  tokensPerSecond: number;
  /** From the yardstick, over the scored positions; undefined for the yardstick itself. */
  distance: Distance | undefined;
}

export interface Distance {
  /** Of KL(yardstick || this), over the whole vocabulary, in nats. */
  klMean: number;
  klP99: number;
  klMax: number;
  /** Fraction of positions whose likeliest token is the yardstick's. */
  top1: number;
}

/**
 * Scores every source on every window; each window starts from an empty context. Position i is scored for i >= skip by what it says of
 * token i + 1 of the window, so the last one never is.
 * @param sources the first is the yardstick of the others. @param part is told how far it is.
 */
export async function score(sources: LogitSource[], windows: Int32Array[], skip: number, part?: Part): Promise<Score[]> {
  const tallies = sources.map(() => new Tally());
  for (const [done, window] of windows.entries()) {
    part?.at(done / windows.length, `window ${done + 1} of ${windows.length}`);
    let yardstick: Yardstick | undefined;
    for (const [index, source] of sources.entries()) {
      const started = performance.now();
      const logits = await source.logits(window);
      const tally = tallies[index] as Tally;
      tally.ms += performance.now() - started;
      tally.tokens += window.length;
      const vocabulary = logits.length / window.length;
      if (index === 0 && sources.length > 1) yardstick = new Yardstick(logits.slice(skip * vocabulary), vocabulary);
      for (let position = skip; position < window.length - 1; position++) {
        const row = logits.subarray(position * vocabulary, (position + 1) * vocabulary);
        const total = logSumExp(row);
        tally.surprise += total - (row[window[position + 1] as number] as number);
        tally.positions++;
        if (yardstick && index > 0) yardstick.measure(position - skip, row, total, tally);
      }
    }
  }
  part?.end(`${windows.length} windows`);
  return sources.map(({ name }, index) => (tallies[index] as Tally).score(name, index > 0));
}

class Tally {
  ms = 0;
  tokens = 0;
  positions = 0;
  surprise = 0;
  same = 0;
  readonly kl: number[] = [];

  score(name: string, isCompared: boolean): Score {
    const { positions, surprise, tokens, ms } = this;
    const perplexity = Math.exp(surprise / positions);
    return { name, positions, perplexity, tokensPerSecond: (1_000 * tokens) / ms, distance: isCompared ? this.#distance() : undefined };
  }

  #distance(): Distance {
    const sorted = Float64Array.from(this.kl).sort();
    const klMean = sorted.reduce((sum, value) => sum + value, 0) / sorted.length;
    const klP99 = sorted[Math.floor(0.99 * (sorted.length - 1))] as number;
    return { klMean, klP99, klMax: sorted.at(-1) as number, top1: this.same / sorted.length };
  }
}

/** The yardstick's logits of one window. */
class Yardstick {
  readonly #probabilities: Float64Array;
  #position = -1;
  #total = 0;
  #top = 0;

  /** @param logits its own copy, `[positions][vocabulary]`. */
  constructor(
    private readonly logits: Float32Array,
    private readonly vocabulary: number,
  ) {
    this.#probabilities = new Float64Array(vocabulary);
  }

  /** Adds to `tally` how far `row`, whose logSumExp is `total`, is from the yardstick's row at this position. */
  measure(position: number, row: Float32Array, total: number, tally: Tally): void {
    const mine = this.logits.subarray(position * this.vocabulary, (position + 1) * this.vocabulary);
    if (position !== this.#position) this.#turnTo(position, mine);
    // KL(p || q) = sum p (ln p - ln q), with ln p = mine - #total and ln q = row - total.
    let sum = 0;
    for (let id = 0; id < mine.length; id++) sum += (this.#probabilities[id] as number) * ((mine[id] as number) - (row[id] as number));
    tally.kl.push(Math.max(0, sum - this.#total + total));
    if (indexOfMax(row) === this.#top) tally.same++;
  }

  #turnTo(position: number, mine: Float32Array): void {
    this.#position = position;
    this.#total = logSumExp(mine);
    this.#top = indexOfMax(mine);
    for (let id = 0; id < mine.length; id++) this.#probabilities[id] = Math.exp((mine[id] as number) - this.#total);
  }
}

/** ln of the sum of e^x. */
export function logSumExp(row: Float32Array): number {
  const largest = row[indexOfMax(row)] as number;
  let sum = 0;
  for (let id = 0; id < row.length; id++) sum += Math.exp((row[id] as number) - largest);
  return largest + Math.log(sum);
}

/** Of the first, where several are largest. */
export function indexOfMax(row: Float32Array): number {
  let best = 0;
  for (let id = 1; id < row.length; id++) if ((row[id] as number) > (row[best] as number)) best = id;
  return best;
}
