/** When a subscriber's tokens go out: voice's at once, others' as soon as a display frame has passed since the last. */
export interface Flushable {
  flush(): void;
}

/** Flushes what was put off, all of one interval together: one timer each, and none while nothing waits. */
export class FrameClock {
  readonly #waiting = new Map<number, Set<Flushable>>();

  /** Calls `flush` within `everyMs`, once, however often it is asked to. */
  putOff(everyMs: number, what: Flushable): void {
    let waiting = this.#waiting.get(everyMs);
    if (!waiting) {
      waiting = new Set();
      this.#waiting.set(everyMs, waiting);
    }
    if (waiting.size === 0) setTimeout(() => this.#flush(everyMs), everyMs);
    waiting.add(what);
  }

  forget(what: Flushable): void {
    for (const waiting of this.#waiting.values()) waiting.delete(what);
  }

  #flush(everyMs: number): void {
    const due = this.#waiting.get(everyMs) ?? new Set();
    this.#waiting.set(everyMs, new Set());
    for (const what of due) what.flush();
  }
}
