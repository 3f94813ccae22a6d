/**
 * From tokens to text that may be shown, exactly as the engine's releaser has it: whole code points, U+FFFD for bytes that are part of none,
 * nothing of a stop string, and whole tokens, each with the text up to the end of the code point that its last byte belongs to.
 */

/** Tokens that may be told now. */
export interface Release {
  /** Whole code points. */
  readonly text: string;
  readonly ids: readonly number[];
  /** Where the text of each id ends, in bytes of `text` as UTF-8; the last is all of it. */
  readonly ends: readonly number[];
  /** A stop string appeared; the text ends before it. */
  readonly stopped: boolean;
}

export class TextReleaser {
  /** Bytes of a code point whose rest is to come. */
  #partial: number[] = [];
  /** Text that was not released yet. */
  #held = "";
  /** Tokens that were not, and where in the held text each one ends; `open` while that is not known. */
  #pending: { id: number; end: number }[] = [];

  constructor(private readonly stops: readonly string[] = []) {}

  /** Nothing waits for what is to come. */
  get isEmpty(): boolean {
    return this.#pending.length === 0;
  }

  /** One more token with its bytes; after `stopped` none. Stop strings are sought in the text of tokens that may stop. */
  push(id: number, bytes: Uint8Array, mayStop = true): Release {
    const before = this.#pending.length;
    this.#pending.push({ id, end: open });
    for (const byte of bytes) this.#decode(byte, before);
    if (this.#partial.length === 0) this.#close(before + 1);
    if (!mayStop || this.stops.length === 0) return this.#take(this.#held.length);
    const stop = this.#findStop();
    if (stop < 0) return this.#take(this.#safeEnd());
    this.#held = this.#held.slice(0, stop);
    this.#close(this.#pending.length);
    for (const token of this.#pending) token.end = Math.min(token.end, stop);
    return { ...this.#take(stop), stopped: true };
  }

  /** The answer has ended otherwise: all that is held comes out, an unfinished code point as U+FFFD. */
  flush(): Release {
    if (this.#partial.length > 0) this.#held += replacement;
    this.#partial = [];
    this.#close(this.#pending.length);
    return this.#take(this.#held.length);
  }

  /** Adds a byte to the code point that it continues, or after the U+FFFD that this is then. The first `before` tokens end with that. */
  #decode(byte: number, before: number): void {
    const [lead] = this.#partial;
    if (lead === undefined) {
      this.#begin(byte);
      return;
    }
    const continues = this.#partial.length === 1 ? mayFollow(lead, byte) : (byte & 0xc0) === 0x80;
    if (continues) this.#partial.push(byte);
    if (continues && this.#partial.length <= followers(lead)) return;
    this.#held += continues ? decoder.decode(Uint8Array.from(this.#partial)) : replacement;
    this.#partial = [];
    this.#close(before);
    if (!continues) this.#begin(byte);
  }

  #begin(byte: number): void {
    const more = followers(byte);
    if (more > 0) this.#partial = [byte];
    else this.#held += more === 0 ? String.fromCharCode(byte) : replacement;
  }

  /** A code point ended here: the first `count` tokens whose end was not known have theirs. */
  #close(count: number): void {
    for (let index = 0; index < count; index++) {
      const token = this.#pending[index];
      if (token?.end === open) token.end = this.#held.length;
    }
  }

  /** Releases the tokens that end at or before `end`, and their text. */
  #take(end: number): Release {
    const ids: number[] = [];
    const ends: number[] = [];
    let cut = 0;
    let bytes = 0;
    for (const token of this.#pending) {
      if (token.end === open || token.end > end) break;
      bytes += Buffer.byteLength(this.#held.slice(cut, token.end));
      cut = token.end;
      ids.push(token.id);
      ends.push(bytes);
    }
    const text = this.#held.slice(0, cut);
    this.#held = this.#held.slice(cut);
    this.#pending.splice(0, ids.length);
    for (const token of this.#pending) if (token.end !== open) token.end -= cut;
    return { text, ids, ends, stopped: false };
  }

  /** Where the stop string begins that is completed first, or -1. Of those completed together the longest counts. */
  #findStop(): number {
    let [first, firstEnd] = [-1, Number.POSITIVE_INFINITY];
    for (const stop of this.stops) {
      const found = this.#held.indexOf(stop);
      const end = found + stop.length;
      if (found < 0 || end > firstEnd) continue;
      first = end < firstEnd ? found : Math.min(first, found);
      firstEnd = end;
    }
    return first;
  }

  /** Everything before this can no longer become part of a stop string. */
  #safeEnd(): number {
    const all = this.#held.length;
    return all - Math.max(...this.stops.map((stop) => overlap(this.#held, stop)));
  }
}

const open = -1;
const replacement = "\ufffd";
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Length of the longest end of `text` that begins `stop`. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(stop.length - 1, text.length); length > 0; length--) if (text.endsWith(stop.slice(0, length))) return length;
  return 0;
}

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
