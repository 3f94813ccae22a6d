/**
 * TOKENS, the message that goes out with every token, without an object, a buffer or a view made for it. What it writes is the MessagePack that
 * any other encoder might have written (https://github.com/msgpack/msgpack/blob/master/spec.md).
 */
import { encode } from "./codec.js";
import { Op } from "./protocol.js";

/** Longer texts go the way of all other messages. */
const textUnitsMax = 1_024;
/** An array's head, op, stream, seq and flags of at most five bytes each, and the text's head of three. */
const headBytesMax = 24;
/** A UTF-16 unit takes at most 3 bytes of UTF-8. */
const frame = new Uint8Array(headBytesMax + 3 * textUnitsMax);
/** The frame's first n bytes, for each n that was asked for. */
const views: Uint8Array[] = [];
const encoder = new TextEncoder();
/** For the few characters of most tokens a loop is faster than the encoder's set-up. */
const loopUnitsMax = 32;
let at = 0;

/**
 * Encodes [TOKENS, stream, seq, text, flags].
 * @returns bytes that are the message's until the next call.
 */
export function encodeTokens(stream: number, seq: number, text: string, flags: number): Uint8Array {
  if (text.length > textUnitsMax) return encode([Op.TOKENS, stream, seq, text, flags]);
  frame[0] = 0x95;
  at = 1;
  putInteger(Op.TOKENS);
  putInteger(stream);
  putInteger(seq);
  putText(text);
  putInteger(flags);
  const view = views[at] ?? frame.subarray(0, at);
  views[at] = view;
  return view;
}

/** @param value of 0 to 2^32 - 1. */
function putInteger(value: number): void {
  if (value < 0x80) {
    frame[at++] = value;
    return;
  }
  const bytes = value < 0x100 ? 1 : value < 0x1_0000 ? 2 : 4;
  frame[at++] = bytes === 1 ? 0xcc : bytes === 2 ? 0xcd : 0xce;
  for (let shift = 8 * (bytes - 1); shift >= 0; shift -= 8) frame[at++] = value >>> shift;
}

function putText(text: string): void {
  if (text.length < loopUnitsMax && putAscii(text)) return;
  const begin = at + 3;
  const bytes = encoder.encodeInto(text, frame.subarray(begin)).written;
  if (bytes < 0x20) frame[at++] = 0xa0 | bytes;
  else if (bytes < 0x100) {
    frame[at++] = 0xd9;
    frame[at++] = bytes;
  } else {
    frame[at++] = 0xda;
    frame[at++] = bytes >>> 8;
    frame[at++] = bytes;
  }
  if (at < begin) frame.copyWithin(at, begin, begin + bytes);
  at += bytes;
}

/** @returns false, with nothing written, where not all of it is ASCII. */
function putAscii(text: string): boolean {
  const begin = at + 1;
  for (let index = 0; index < text.length; index++) {
    const unit = text.charCodeAt(index);
    if (unit >= 0x80) return false;
    frame[begin + index] = unit;
  }
  frame[at] = 0xa0 | text.length;
  at = begin + text.length;
  return true;
}
