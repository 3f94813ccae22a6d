/**
 * What one answer has said so far: its text as UTF-8, where in it each token ends, and the digest. It only grows; at most the
 * context's tokens go in, so it is bounded by the request.
 */
import { Digest } from "../shared/digest.js";

export class ResponseLog {
  #bytes = new Uint8Array(1_024);
  #length = 0;
  /** `ends[seq - 1]` is where the text released with token seq ends, in bytes. */
  readonly #ends: number[] = [];
  readonly #digest = new Digest();

  /** The last released token; 0 before the first. */
  get seq(): number {
    return this.#ends.length;
  }

  get textBytes(): number {
    return this.#length;
  }

  /** CRC-32C of the text so far. */
  get digest(): number {
    return this.#digest.value;
  }

  /** Tokens up to `seq` are released with this text; those before the last have none of their own. Throws if seq does not grow. */
  append(seq: number, text: string): void {
    if (seq <= this.seq) throw new Error(`token ${seq} was appended after token ${this.seq}`);
    while (this.#ends.length < seq - 1) this.#ends.push(this.#length);
    // A UTF-16 unit takes at most 3 bytes of UTF-8.
    this.#reserve(3 * text.length);
    const { written } = encoder.encodeInto(text, this.#bytes.subarray(this.#length));
    this.#digest.update(this.#bytes.subarray(this.#length, this.#length + written));
    this.#length += written;
    this.#ends.push(this.#length);
  }

  /** The text of all tokens after `seq`. */
  after(seq: number): string {
    const from = seq === 0 ? 0 : (this.#ends[seq - 1] ?? this.#length);
    return decoder.decode(this.#bytes.subarray(from, this.#length));
  }

  #reserve(more: number): void {
    if (this.#length + more <= this.#bytes.length) return;
    const grown = new Uint8Array(Math.max(2 * this.#bytes.length, this.#length + more));
    grown.set(this.#bytes.subarray(0, this.#length));
    this.#bytes = grown;
  }
}

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
