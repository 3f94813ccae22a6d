/**
 * How far an answer may run ahead of its reader. With a window, credit reaches that many tokens beyond the last one that was consumed, and
 * is told once half a window was; without one there is no bound. It owns no timer: it moves when the reader does.
 */
import { MillraceError } from "../shared/errors.js";

export class Credit {
  #consumed: number;
  #granted: number;
  #isHeld = false;

  /**
   * @param window tokens, from 1; undefined: no bound. @param grant sends a credit, which is a seq. @param consumed before.
   * @throws MillraceError `field_invalid` for a window that is none.
   */
  constructor(
    private readonly window: number | undefined,
    private readonly grant: (seqMax: number) => void,
    consumed = 0,
  ) {
    if (window !== undefined && !(Number.isSafeInteger(window) && window >= 1))
      throw new MillraceError("field_invalid", `window is ${window}, not a number of tokens from 1`);
    this.#consumed = consumed;
    this.#granted = consumed + (window ?? 0);
  }

  /** The reader is done with everything up to this token. */
  consumed(seq: number): void {
    this.#consumed = Math.max(this.#consumed, seq);
    this.#grow();
  }

  /** While it is held nothing is granted; what was consumed meanwhile counts afterwards. */
  hold(isHeld: boolean): void {
    this.#isHeld = isHeld;
    this.#grow();
  }

  /** The credit that a START or RESUME is to carry; undefined: all. */
  renew(): number | undefined {
    if (this.window === undefined) return undefined;
    if (!this.#isHeld) this.#granted = Math.max(this.#granted, this.#consumed + this.window);
    return this.#granted;
  }

  #grow(): void {
    if (this.window === undefined || this.#isHeld) return;
    const next = this.#consumed + this.window;
    if (next - this.#granted < Math.ceil(this.window / 2)) return;
    this.#granted = next;
    this.grant(next);
  }
}
