/** CRC-32C (Castagnoli, RFC 3720 appendix B.4) of a growing byte sequence: both ends of a response compute it and DONE compares them. */
export class Digest {
  #state = 0xffff_ffff;
  #bytes = 0;

  /** Those from `from` up to `to`; by default all. */
  update(bytes: Uint8Array, from = 0, to = bytes.length): void {
    let state = this.#state;
    for (let at = from; at < to; at++) state = (table[(state ^ (bytes[at] as number)) & 0xff] as number) ^ (state >>> 8);
    this.#state = state;
    this.#bytes += to - from;
  }

  /** The checksum so far, 0 to 2^32 - 1. */
  get value(): number {
    return (this.#state ^ 0xffff_ffff) >>> 0;
  }

  get bytes(): number {
    return this.#bytes;
  }
}

const reversedPolynomial = 0x82f6_3b78;

const table = Uint32Array.from({ length: 256 }, (_, byte) => {
  let remainder = byte;
  for (let bit = 0; bit < 8; bit++) remainder = remainder & 1 ? (remainder >>> 1) ^ reversedPolynomial : remainder >>> 1;
  return remainder;
});
