/**
 * What one answer has said so far: its text as UTF-8, where in it each token ends, the tokens' ids, where sentences end, and the digest.
 * It only grows; at most the context's tokens go in, so it is bounded by the request. Every subscriber reads from it, each at its own place.
 */
import { Digest } from "../shared/digest.js";
import type { Released, TokenLogprobs } from "./inference.js";
import { Sentences } from "./sentences.js";

export class ResponseLog {
  #bytes = new Uint8Array(512);
  #length = 0;
  /** `ends[seq - 1]` is where the text released with token seq ends, in bytes. */
  readonly #ends: number[] = [];
  readonly #ids: number[] = [];
  /** The tokens before whose text a sentence has ended, ascending. */
  readonly #breaks: number[] = [];
  /** From the token after `logprobsFrom` on: those that an answer was continued with have none. */
  readonly #logprobs: TokenLogprobs[] = [];
  #logprobsFrom = 0;
  readonly #sentences = new Sentences();
  readonly #digest = new Digest();
  /** What was appended last is most often what is asked for next. */
  #lastFrom = 0;
  #lastText = "";

  /** The last released token; 0 before the first. */
  get seq(): number {
    return this.#ends.length;
  }

  get textBytes(): number {
    return this.#length;
  }

  /** CRC-32C of the text so far; computed as far as it was not when it was asked for last. */
  get digest(): number {
    this.#digest.update(this.#bytes, this.#digest.bytes, this.#length);
    return this.#digest.value;
  }

  /** Memory that it takes, roughly. */
  get bytes(): number {
    return this.#bytes.length + 16 * this.#ends.length + 512 * this.#logprobs.length;
  }

  /** @throws Error where the tokens do not follow those that are in here. */
  append({ seq, text, ids, ends, logprobs }: Released): void {
    const from = this.seq;
    if (seq !== from + ids.length || ends.length !== ids.length)
      throw new Error(`${ids.length} tokens up to ${seq}, ${ends.length} of them with ends, were appended after token ${from}`);
    const begin = this.#length;
    this.#write(text);
    for (let index = 0; index < ids.length; index++) {
      this.#ids.push(ids[index] as number);
      this.#ends.push(begin + (ends[index] as number));
      const own = ids.length === 1 ? text : this.#decode(this.#endOf(from + index), this.#endOf(from + index + 1));
      if (this.#sentences.endsBefore(own)) this.#breaks.push(from + index + 1);
    }
    if (logprobs) {
      if (this.#logprobs.length === 0) this.#logprobsFrom = from;
      this.#logprobs.push(...logprobs);
    }
    this.#lastFrom = from;
    this.#lastText = text;
  }

  /** The text of the tokens after `from` up to `to`. */
  text(from: number, to: number): string {
    if (from === this.#lastFrom && to === this.seq) return this.#lastText;
    return this.#decode(this.#endOf(from), this.#endOf(to));
  }

  ids(from: number, to: number): number[] {
    return this.#ids.slice(from, to);
  }

  get hasLogprobs(): boolean {
    return this.#logprobs.length > 0;
  }

  /** Of the last tokens up to `to` that were told with them, none before `from`. */
  logprobs(from: number, to: number): TokenLogprobs[] {
    return this.#logprobs.slice(Math.max(0, from - this.#logprobsFrom), Math.max(0, to - this.#logprobsFrom));
  }

  /** Whether the text before token `seq` ends a sentence. */
  endsSentenceBefore(seq: number): boolean {
    return this.#breakAfter(seq - 1) === seq;
  }

  /** How far one message may go that begins after `from`: to `to`, or to the end of a sentence that token from + 1 does not begin. */
  reach(from: number, to: number): number {
    const next = this.#breakAfter(from + 1);
    return next === undefined || next > to ? to : next - 1;
  }

  /** The last code point's end that is not beyond `textBytes`, and the token within which it lies. */
  cut(textBytes: number): { seq: number; textBytes: number } {
    let at = Math.min(textBytes, this.#length);
    while (at > 0 && at < this.#length && ((this.#bytes[at] as number) & 0xc0) === 0x80) at--;
    return { seq: at === 0 ? 0 : firstIndex(this.#ends, (end) => end >= at) + 1, textBytes: at };
  }

  /** The first `textBytes` bytes of the text. */
  beginning(textBytes: number): string {
    return this.#decode(0, textBytes);
  }

  #endOf(seq: number): number {
    return seq === 0 ? 0 : (this.#ends[seq - 1] ?? this.#length);
  }

  /** The first token after `seq` before which a sentence has ended. */
  #breakAfter(seq: number): number | undefined {
    return this.#breaks[firstIndex(this.#breaks, (each) => each > seq)];
  }

  #decode(begin: number, end: number): string {
    return decoder.decode(this.#bytes.subarray(begin, end));
  }

  /** Appends UTF-8. Most tokens are a few characters of ASCII, for which a loop is faster than the encoder's set-up. */
  #write(text: string): void {
    // A UTF-16 unit takes at most 3 bytes of UTF-8.
    this.#reserve(3 * text.length);
    let at = 0;
    if (text.length <= loopCharsMax) {
      for (; at < text.length; at++) {
        const code = text.charCodeAt(at);
        if (code >= 0x80) break;
        this.#bytes[this.#length++] = code;
      }
    }
    if (at < text.length) this.#length += encoder.encodeInto(text.slice(at), this.#bytes.subarray(this.#length)).written;
  }

  #reserve(more: number): void {
    if (this.#length + more <= this.#bytes.length) return;
    const grown = new Uint8Array(Math.max(2 * this.#bytes.length, this.#length + more));
    grown.set(this.#bytes.subarray(0, this.#length));
    this.#bytes = grown;
  }
}

/** Where an ascending list begins to fulfil the condition; its length where it never does. */
function firstIndex(list: readonly number[], holds: (value: number) => boolean): number {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(list[middle] as number)) high = middle;
    else low = middle + 1;
  }
  return low;
}

const encoder = new TextEncoder();
const loopCharsMax = 32;
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
