/**
 * From token bytes to text that may be shown, as the engine's releaser does it: whole code points, U+FFFD for bytes that are part of none,
 * and each token with the text up to the end of the code point that its last byte belongs to.
 */

/** A token with its text. */
export interface Piece {
  id: number;
  text: string;
}

export class TextDecoding {
  /** Bytes of a code point whose rest is to come. */
  #partial: number[] = [];
  /** Text not yet released, and where in it each token ends; -1 while that is not known. */
  #held = "";
  #pending: { id: number; end: number }[] = [];

  /** @returns the tokens whose text is known now, in order. */
  push(id: number, bytes: Uint8Array): Piece[] {
    const before = this.#pending.length;
    this.#pending.push({ id, end: -1 });
    for (const byte of bytes) if (this.#decode(byte)) this.#close(before);
    if (this.#partial.length === 0) this.#close(before + 1);
    return this.#take();
  }

  /** The answer is over: an unfinished code point is U+FFFD. */
  flush(): Piece[] {
    if (this.#partial.length > 0) this.#held += replacement;
    this.#partial = [];
    this.#close(this.#pending.length);
    return this.#take();
  }

  /** @returns whether what earlier bytes had begun is over, completed or not. */
  #decode(byte: number): boolean {
    const [lead] = this.#partial;
    if (lead === undefined) {
      this.#begin(byte);
      return this.#partial.length === 0;
    }
    if (this.#partial.length === 1 ? mayFollow(lead, byte) : (byte & 0xc0) === 0x80) {
      this.#partial.push(byte);
      if (this.#partial.length <= followers(lead)) return false;
      this.#held += decoder.decode(Uint8Array.from(this.#partial));
      this.#partial = [];
      return true;
    }
    this.#held += replacement;
    this.#partial = [];
    this.#begin(byte);
    return true;
  }

  #begin(byte: number): void {
    const more = followers(byte);
    if (more > 0) this.#partial = [byte];
    else this.#held += more === 0 ? String.fromCharCode(byte) : replacement;
  }

  #close(count: number): void {
    for (const token of this.#pending.slice(0, count)) if (token.end < 0) token.end = this.#held.length;
  }

  #take(): Piece[] {
    const pieces: Piece[] = [];
    let from = 0;
    for (const { id, end } of this.#pending) {
      if (end < 0) break;
      pieces.push({ id, text: this.#held.slice(from, end) });
      from = end;
    }
    this.#pending.splice(0, pieces.length);
    this.#held = this.#held.slice(from);
    for (const token of this.#pending) if (token.end >= 0) token.end -= from;
    return pieces;
  }
}

const replacement = "\ufffd";
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Bytes that follow a lead byte, or -1 if it cannot lead. */
function followers(lead: number): number {
  if (lead < 0x80) return 0;
  if (lead >= 0xc2 && lead <= 0xdf) return 1;
  if (lead >= 0xe0 && lead <= 0xef) return 2;
  return lead >= 0xf0 && lead <= 0xf4 ? 3 : -1;
}

/** Whether `byte` may stand second after `lead`: shuts out overlong forms, surrogates and what lies beyond U+10FFFF. */
function mayFollow(lead: number, byte: number): boolean {
  if (lead === 0xe0) return byte >= 0xa0 && byte <= 0xbf;
  if (lead === 0xed) return byte >= 0x80 && byte <= 0x9f;
  if (lead === 0xf0) return byte >= 0x90 && byte <= 0xbf;
  if (lead === 0xf4) return byte >= 0x80 && byte <= 0x8f;
  return byte >= 0x80 && byte <= 0xbf;
}
