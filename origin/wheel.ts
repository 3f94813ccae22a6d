/**
 * Calls something for each of many items once a step, the items spread over the step's time: so many buckets, one of which is served at
 * each tick. One timer, whatever the number of items, and none while there are none.
 */

/** Not much more often than this does a timer fire. */
const tickMsMin = 2;
/** Ticks that a timer which fires late makes up for. */
const catchUpTicksMax = 64;
/** Successive multiples of the golden ratio's fraction fall evenly, however many there are. */
const goldenFraction = 0.618_033_988_75;

export class Wheel<Item> {
  readonly #buckets: Set<Item>[];
  readonly #bucketOf = new Map<Item, Set<Item>>();
  readonly #tickMs: number;
  #at = 0;
  #added = 0;
  #timer: NodeJS.Timeout | undefined;
  #lastMs = 0;

  /**
   * @param stepMs between two calls for one item.
   * @param onTick called before each tick; true keeps the clock going though there are no items.
   */
  constructor(
    stepMs: number,
    private readonly serve: (item: Item) => void,
    private readonly onTick: () => boolean,
  ) {
    const count = Math.max(1, Math.floor(stepMs / tickMsMin));
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
    const bucket = this.#buckets[(this.#at + place) % this.#buckets.length] as Set<Item>;
    bucket.add(item);
    this.#bucketOf.set(item, bucket);
  }

  delete(item: Item): void {
    this.#bucketOf.get(item)?.delete(item);
    this.#bucketOf.delete(item);
  }

  /** There may be something to do again. */
  wake(): void {
    if (this.#timer !== undefined) return;
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
    const now = performance.now();
    const due = Math.floor((now - this.#lastMs) / this.#tickMs);
    const ticks = Math.min(due, catchUpTicksMax);
    this.#lastMs = due > ticks ? now : this.#lastMs + due * this.#tickMs;
    let isWaiting = false;
    for (let tick = 0; tick < ticks; tick++) {
      isWaiting = this.onTick();
      const bucket = this.#buckets[this.#at] as Set<Item>;
      this.#at = (this.#at + 1) % this.#buckets.length;
      for (const item of bucket) this.serve(item);
    }
    this.#timer = undefined;
    if (this.size > 0 || isWaiting || ticks === 0) this.#schedule();
  }
}
