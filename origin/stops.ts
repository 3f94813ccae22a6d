/** Holds back the simulated tokens whose text may turn out to begin a stop string. Tokens are released whole, never in part. */
export class StopFilter {
  #held: { seq: number; text: string }[] = [];

  constructor(private readonly stops: readonly string[]) {}

  /** @returns what is released: text up to token `seq` (0 if none), and whether a stop string ended the answer. */
  push(seq: number, text: string): { seq: number; text: string; stopped: boolean } {
    this.#held.push({ seq, text });
    const all = this.#held.map((piece) => piece.text).join("");
    const found = this.stops.map((stop) => all.indexOf(stop)).filter((at) => at >= 0);
    if (found.length > 0) {
      this.#held = [];
      return { seq, text: all.slice(0, Math.min(...found)), stopped: true };
    }
    const safe = all.length - Math.max(0, ...this.stops.map((stop) => overlap(all, stop)));
    let released = 0;
    let last = 0;
    while (this.#held[0] && released + this.#held[0].text.length <= safe) {
      const piece = this.#held.shift() as { seq: number; text: string };
      released += piece.text.length;
      last = piece.seq;
    }
    return { seq: last, text: all.slice(0, released), stopped: false };
  }

  /** What is still held when the answer ends for another reason. */
  end(): string {
    const rest = this.#held.map((piece) => piece.text).join("");
    this.#held = [];
    return rest;
  }
}

/** Length of the longest end of `text` that begins `stop`. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(stop.length - 1, text.length); length > 0; length--) if (text.endsWith(stop.slice(0, length))) return length;
  return 0;
}
