/** How long an answer took and where the time went, on this process's monotonic clock, and whether its promise was kept. */
import type { GapCause, Slo } from "../shared/protocol.js";

/** An answer is good if its first token and so many of all tokens were on time. */
const goodShare = 0.99;

export class Durations {
  #tokens = 0;
  #late = 0;
  #isFirstLate = false;
  #lastMs = 0;
  #gap: { ms: number; cause: GapCause } = { ms: 0, cause: "engine" };
  #parkedMs = 0;
  /** Of the park, since the last token. */
  #parkedSinceLastMs = 0;
  #dueMs = Number.POSITIVE_INFINITY;
  #itlMs = 0;

  /** @param receivedMs when START came. */
  constructor(readonly receivedMs: number) {}

  /** The first token is due so long after START, each later one `itlMs` after the one before it was. */
  promise(ttftMs: number, itlMs: number): void {
    this.#dueMs = this.receivedMs + ttftMs;
    this.#itlMs = itlMs;
  }

  /** So many tokens were released now. @returns since the last ones, or since START. */
  released(count: number, nowMs: number): number {
    const isFirst = this.#tokens === 0;
    const gapMs = nowMs - (isFirst ? this.receivedMs : this.#lastMs);
    if (!isFirst && gapMs > this.#gap.ms) this.#gap = { ms: gapMs, cause: 2 * this.#parkedSinceLastMs > gapMs ? "parked" : "engine" };
    for (let index = 0; index < count; index++) {
      if (nowMs > this.#dueMs) {
        this.#late++;
        this.#isFirstLate ||= isFirst && index === 0;
      }
      this.#dueMs += this.#itlMs;
    }
    this.#tokens += count;
    this.#lastMs = nowMs;
    this.#parkedSinceLastMs = 0;
    return gapMs;
  }

  /** It had no credit for so long: what is due is due so much later. */
  parked(ms: number): void {
    this.#parkedMs += ms;
    this.#parkedSinceLastMs += ms;
    this.#dueMs += ms;
  }

  get parkedMs(): number {
    return this.#parkedMs;
  }

  get slo(): Slo {
    const good = !this.#isFirstLate && this.#late <= (1 - goodShare) * this.#tokens;
    return { lateTokens: this.#late, good };
  }

  /** The longest wait between two tokens. @param outboxMs the longest that one waited to be sent to a subscriber. */
  gap(outboxMs: number): { gapMs: number; gapCause: GapCause } {
    if (outboxMs > this.#gap.ms) return { gapMs: outboxMs, gapCause: "outbox" };
    return { gapMs: this.#gap.ms, gapCause: this.#gap.cause };
  }
}
