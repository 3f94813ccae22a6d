import type { UpgradeTimings } from "../shared/protocol.js";

/**
 * Where one upgrade's time goes, for HELLO, in milliseconds of this machine's clock. In a Worker that clock moves with I/O alone: what is
 * counted is waiting, which is nearly all that an upgrade consists of.
 */
export class Stopwatch {
  readonly #spent = { redeemMs: 0, chooseMs: 0, connectMs: 0 };

  /** What was spent until now, on what has ended. */
  get timings(): UpgradeTimings {
    return { ...this.#spent };
  }

  /** Does `work`, and counts its time for `part` once it has ended, in whichever way. */
  async spend<Result>(part: keyof UpgradeTimings, work: () => Promise<Result>): Promise<Result> {
    const begunMs = performance.now();
    try {
      return await work();
    } finally {
      this.#spent[part] += Math.max(0, performance.now() - begunMs);
    }
  }
}
