import { MillraceError } from "./errors.js";
import { limits } from "./limits.js";

/**
 * Walks the MessagePack in `bytes` without building anything, and throws `frame_malformed` unless it is exactly one value within
 * the protocol's bounds: depth, items, whole strings of valid UTF-8, no extension types. What passes is safe to unpack: a header
 * that lies about a length costs an error, not memory.
 */
export function scan(bytes: Uint8Array): void {
  const end = new Scanner(bytes).value(0, 0);
  if (end !== bytes.length) throw malformed(`${bytes.length - end} bytes follow the message`);
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

class Scanner {
  readonly #view: DataView;

  constructor(private readonly bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** Checks the value at `at`, inside `depth` containers, and returns the offset behind it. */
  value(at: number, depth: number): number {
    const type = this.#length(at, 1);
    const body = at + 1;
    if (type <= 0x7f || type >= 0xe0) return body; // integers that are their own type
    if (type <= 0x8f) return this.#items(body, (type & 0x0f) * 2, depth, type & 0x0f);
    if (type <= 0x9f) return this.#items(body, type & 0x0f, depth, type & 0x0f);
    if (type <= 0xbf) return this.#text(body, type & 0x1f);
    switch (type) {
      case 0xc0: // nil
      case 0xc2: // false
      case 0xc3: // true
        return body;
      case 0xc4:
        return this.#skip(body + 1, this.#length(body, 1));
      case 0xc5:
        return this.#skip(body + 2, this.#length(body, 2));
      case 0xc6:
        return this.#skip(body + 4, this.#length(body, 4));
      case 0xca:
        return this.#skip(body, 4);
      case 0xcb:
        return this.#skip(body, 8);
      case 0xcc: // unsigned, then signed, of 1, 2, 4 and 8 bytes
      case 0xcd:
      case 0xce:
      case 0xcf:
        return this.#skip(body, 1 << (type - 0xcc));
      case 0xd0:
      case 0xd1:
      case 0xd2:
      case 0xd3:
        return this.#skip(body, 1 << (type - 0xd0));
      case 0xd9:
        return this.#text(body + 1, this.#length(body, 1));
      case 0xda:
        return this.#text(body + 2, this.#length(body, 2));
      case 0xdb:
        return this.#text(body + 4, this.#length(body, 4));
      case 0xdc:
        return this.#array(body + 2, this.#length(body, 2), depth);
      case 0xdd:
        return this.#array(body + 4, this.#length(body, 4), depth);
      case 0xde:
        return this.#map(body + 2, this.#length(body, 2), depth);
      case 0xdf:
        return this.#map(body + 4, this.#length(body, 4), depth);
      default:
        throw malformed(`byte ${at} is 0x${type.toString(16)}, an extension or unused type`);
    }
  }

  #array(at: number, count: number, depth: number): number {
    return this.#items(at, count, depth, count);
  }

  #map(at: number, count: number, depth: number): number {
    return this.#items(at, count * 2, depth, count);
  }

  #items(at: number, values: number, depth: number, count: number): number {
    if (depth >= limits.frameDepthMax) throw malformed(`it nests deeper than ${limits.frameDepthMax}`);
    if (count > limits.frameItemsMax) throw malformed(`an array or map has ${count} items, over ${limits.frameItemsMax}`);
    let next = at;
    for (let index = 0; index < values; index++) next = this.value(next, depth + 1);
    return next;
  }

  #text(at: number, length: number): number {
    const end = this.#skip(at, length);
    try {
      utf8.decode(this.bytes.subarray(at, end));
    } catch {
      throw malformed(`the text at byte ${at} is not UTF-8`);
    }
    return end;
  }

  #skip(at: number, length: number): number {
    const end = at + length;
    if (end > this.bytes.length) throw malformed(`it ends at byte ${this.bytes.length}, inside a value that ends at ${end}`);
    return end;
  }

  #length(at: number, width: 1 | 2 | 4): number {
    this.#skip(at, width);
    return width === 1 ? this.#view.getUint8(at) : width === 2 ? this.#view.getUint16(at) : this.#view.getUint32(at);
  }
}

export function malformed(why: string): MillraceError {
  return new MillraceError("frame_malformed", `the frame cannot be read: ${why}`);
}
