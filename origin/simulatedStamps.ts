/**
 * Tokens that say when they were due, for load tests that tell how late each is where it is read: a space, and microseconds of CLOCK_MONOTONIC in
 * base 36. Linux has one such clock for all processes of a machine. They follow no hash, and no stop string is looked for in them.
 */
import type { Release } from "./simulatedText.js";

/** Any token of text would do: nobody decodes it. */
const stampId = 2;

export class Stamps {
  /** Between that clock and the one of `performance.now()`, which begins with the process. */
  readonly #offsetMs = Number(process.hrtime.bigint()) / 1e6 - performance.now();
  #lastMs = Number.NaN;
  #last: Release = { text: "", ids: [], ends: [], stopped: false };

  /** @param dueMs on the clock of `performance.now()`. All tokens of one tick share what this gives. */
  at(dueMs: number): Release {
    if (dueMs === this.#lastMs) return this.#last;
    const text = ` ${Math.round(1_000 * (this.#offsetMs + dueMs)).toString(36)}`;
    this.#lastMs = dueMs;
    this.#last = { text, ids: [stampId], ends: [text.length], stopped: false };
    return this.#last;
  }
}
