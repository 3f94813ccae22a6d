/** CRC-32C (Castagnoli, RFC 3720 appendix B.4) of a growing byte sequence: both ends of a response compute it and DONE compares them. */
export class Digest {
  #state = 0xffff_ffff;
  #bytes = 0;

  update(bytes: Uint8Array): void {
    let state = this.#state;
    for (const byte of bytes) state = (table[(state ^ byte) & 0xff] as number) ^ (state >>> 8);
    this.#state = state;
    this.#bytes += bytes.length;
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
