/** Holds back the simulated tokens whose text may turn out to begin a stop string. Tokens are released whole, never in part. */
import type { Piece } from "./simulatedText.js";

export class StopFilter {
  #held: Piece[] = [];

  constructor(private readonly stops: readonly string[]) {}

  /** @param mayStop whether a stop string may be found in this. @returns what is released, and whether a stop string ended the answer. */
  push(pieces: readonly Piece[], mayStop: boolean): { released: Piece[]; stopped: boolean } {
    if (this.stops.length === 0 || !mayStop) return { released: [...this.end(), ...pieces], stopped: false };
    this.#held.push(...pieces);
    const all = this.#held.map((piece) => piece.text).join("");
    const found = this.stops.map((stop) => all.indexOf(stop)).filter((at) => at >= 0);
    if (found.length > 0) return { released: cut(this.end(), Math.min(...found)), stopped: true };
    const safe = all.length - Math.max(0, ...this.stops.map((stop) => overlap(all, stop)));
    const released: Piece[] = [];
    let length = 0;
    while (this.#held[0] && length + this.#held[0].text.length <= safe) {
      const piece = this.#held.shift() as Piece;
      length += piece.text.length;
      released.push(piece);
    }
    return { released, stopped: false };
  }

  /** What is still held. */
  end(): Piece[] {
    return this.#held.splice(0);
  }
}

/** The same tokens, with the text before `end` alone. */
function cut(pieces: readonly Piece[], end: number): Piece[] {
  let from = 0;
  return pieces.map(({ id, text }) => {
    const left = Math.max(0, end - from);
    from += text.length;
    return { id, text: text.slice(0, left) };
  });
}

/** Length of the longest end of `text` that begins `stop`. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(stop.length - 1, text.length); length > 0; length--) if (text.endsWith(stop.slice(0, length))) return length;
  return 0;
}
