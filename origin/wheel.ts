/**
 * Calls something for each of many items once a step, the items spread over the step's time: so many buckets, one of which is served at
 * each tick. One timer, whatever the number of items, and none while there are none.
 */

/** Not much more often than this does a timer fire. */
const tickMsMin = 2;
/** What a timer that fires late makes up for: where a machine is too slow, time goes by for nobody. */
const catchUpMsMax = 250;
/** Successive multiples of the golden ratio's fraction fall evenly, however many there are. */
const goldenFraction = 0.618_033_988_75;

export class Wheel<Item> {
  readonly #buckets: Set<Item>[];
  readonly #bucketOf = new Map<Item, Set<Item>>();
  readonly #tickMs: number;
  #at = 0;
  #added = 0;
  #timer: NodeJS.Timeout | undefined;
  #isServing = false;
  #isWoken = false;
  #lastMs = 0;

  /**
   * @param stepMs between two calls for one item.
   * @param serve is told when the item was due, on the clock of `performance.now()`.
   * @param isSpread whether each item has a moment of its own; otherwise all are served at once.
   * @param onTick called before each tick; true keeps the clock going though there are no items.
   */
  constructor(
    stepMs: number,
    isSpread: boolean,
    private readonly serve: (item: Item, dueMs: number) => void,
    private readonly onTick: () => boolean,
  ) {
    const count = isSpread ? Math.max(1, Math.floor(stepMs / tickMsMin)) : 1;
    this.#tickMs = stepMs / count;
    this.#buckets = Array.from({ length: count }, () => new Set());
  }

  get size(): number {
    return this.#bucketOf.size;
  }

  items(): Iterable<Item> {
    return this.#bucketOf.keys();
  }

  add(item: Item): void {
    const place = Math.floor(((this.#added++ * goldenFraction) % 1) * this.#buckets.length);
    const bucket = this.#buckets[place] as Set<Item>;
    bucket.add(item);
    this.#bucketOf.set(item, bucket);
  }

  delete(item: Item): void {
    this.#bucketOf.get(item)?.delete(item);
    this.#bucketOf.delete(item);
  }

  /** There may be something to do again. */
  wake(): void {
    this.#isWoken = true;
    if (this.#timer !== undefined || this.#isServing) return;
    this.#lastMs = performance.now();
    this.#schedule();
  }

  close(): void {
    clearTimeout(this.#timer);
  }

  #schedule(): void {
    this.#timer = setTimeout(() => this.#run(), Math.max(0, this.#lastMs + this.#tickMs - performance.now()));
  }

  #run(): void {
    this.#timer = undefined;
    const now = performance.now();
    const due = Math.floor((now - this.#lastMs) / this.#tickMs);
    const ticks = Math.min(due, Math.max(1, Math.floor(catchUpMsMax / this.#tickMs)));
    const lastMs = this.#lastMs;
    this.#lastMs = due > ticks ? now : lastMs + due * this.#tickMs;
    // Whoever wakes it meanwhile is served next time.
    this.#isWoken = ticks === 0;
    this.#isServing = true;
    for (let tick = 1; tick <= ticks; tick++) this.#tick(lastMs + tick * this.#tickMs);
    this.#isServing = false;
    if (this.size > 0 || this.#isWoken) this.#schedule();
  }

  #tick(dueMs: number): void {
    if (this.onTick()) this.#isWoken = true;
    const bucket = this.#buckets[this.#at] as Set<Item>;
    this.#at = (this.#at + 1) % this.#buckets.length;
    for (const item of bucket) this.serve(item, dueMs);
  }
}
