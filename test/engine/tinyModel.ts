/** A tiny Llama with random weights as a GGUF file, for tests that need an engine but no sense: it loads in milliseconds. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export const tiny = { layers: 1, hidden: 64, heads: 4, kvHeads: 2, ffn: 96, vocabulary: 256, context: 1 << 18 } as const;

const kinds = { u32: 4, f32: 6, string: 8, array: 9 } as const;

/** Collects a file's little-endian bytes. */
class Bytes {
  readonly #parts: Buffer[] = [];
  length = 0;

  add(part: Buffer): this {
    this.#parts.push(part);
    this.length += part.length;
    return this;
  }
  u32(value: number): this {
    const part = Buffer.alloc(4);
    part.writeUInt32LE(value);
    return this.add(part);
  }
  u64(value: number): this {
    const part = Buffer.alloc(8);
    part.writeBigUInt64LE(BigInt(value));
    return this.add(part);
  }
  f32(value: number): this {
    const part = Buffer.alloc(4);
    part.writeFloatLE(value);
    return this.add(part);
  }
  text(value: string): this {
    const part = Buffer.from(value);
    return this.u64(part.length).add(part);
  }
  pad(multiple: number): this {
    return this.add(Buffer.alloc((multiple - (this.length % multiple)) % multiple));
  }
  whole(): Buffer {
    return Buffer.concat(this.#parts);
  }
}

/** A byte as byte-level BPE writes it: printable ones as themselves, the others from U+0100 up in order. */
function writtenByte(byte: number): string {
  const printable = (b: number): boolean => (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  if (printable(byte)) return String.fromCodePoint(byte);
  let point = 256;
  for (let before = 0; before < byte; before++) if (!printable(before)) point++;
  return String.fromCodePoint(point);
}

/** Numbers from -1 to 1 that are the same in every run (a linear congruence, Numerical Recipes). */
function numbers(): () => number {
  let state = 12345;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  };
}

/** @param architecture what the file says it is. */
export function tinyModel(architecture = "llama"): Buffer {
  const next = numbers();
  const random = (count: number, scale: number): Float32Array => Float32Array.from({ length: count }, () => next() * scale);
  const tensors: { name: string; dimensions: number[]; values: Float32Array }[] = [];
  const matrix = (name: string, rows: number, columns: number): void => {
    tensors.push({ name, dimensions: [columns, rows], values: random(rows * columns, 2 / Math.sqrt(columns)) });
  };
  const norm = (name: string): void => {
    tensors.push({ name, dimensions: [tiny.hidden], values: new Float32Array(tiny.hidden).fill(1) });
  };
  matrix("token_embd.weight", tiny.vocabulary, tiny.hidden);
  for (let layer = 0; layer < tiny.layers; layer++) {
    const block = `blk.${layer}.`;
    const kv = (tiny.hidden * tiny.kvHeads) / tiny.heads;
    norm(`${block}attn_norm.weight`);
    matrix(`${block}attn_q.weight`, tiny.hidden, tiny.hidden);
    matrix(`${block}attn_k.weight`, kv, tiny.hidden);
    matrix(`${block}attn_v.weight`, kv, tiny.hidden);
    matrix(`${block}attn_output.weight`, tiny.hidden, tiny.hidden);
    norm(`${block}ffn_norm.weight`);
    matrix(`${block}ffn_gate.weight`, tiny.ffn, tiny.hidden);
    matrix(`${block}ffn_up.weight`, tiny.ffn, tiny.hidden);
    matrix(`${block}ffn_down.weight`, tiny.hidden, tiny.ffn);
  }
  norm("output_norm.weight");

  const pairs = new Bytes();
  let keys = 0;
  const pair = (name: string, kind: number): Bytes => {
    keys++;
    return pairs.text(name).u32(kind);
  };
  pair("general.architecture", kinds.string).text(architecture);
  pair("general.name", kinds.string).text("tiny");
  const counts: [string, number][] = [
    ["block_count", tiny.layers],
    ["embedding_length", tiny.hidden],
    ["feed_forward_length", tiny.ffn],
    ["attention.head_count", tiny.heads],
    ["attention.head_count_kv", tiny.kvHeads],
    ["context_length", tiny.context],
  ];
  for (const [name, value] of counts) pair(`llama.${name}`, kinds.u32).u32(value);
  pair("llama.attention.layer_norm_rms_epsilon", kinds.f32).f32(1e-5);
  pair("tokenizer.ggml.model", kinds.string).text("gpt2");
  pair("tokenizer.ggml.tokens", kinds.array).u32(kinds.string).u64(tiny.vocabulary);
  for (let byte = 0; byte < tiny.vocabulary; byte++) pairs.text(writtenByte(byte));

  const header = new Bytes().add(Buffer.from("GGUF")).u32(3).u64(tensors.length).u64(keys).add(pairs.whole());
  const data = new Bytes();
  for (const { name, dimensions, values } of tensors) {
    header.text(name).u32(dimensions.length);
    for (const dimension of dimensions) header.u64(dimension);
    header.u32(0).u64(data.pad(32).length);
    data.add(Buffer.from(values.buffer));
  }
  return header.pad(32).add(data.whole()).whole();
}

/** A folder that is gone when `remove` is called; `write` puts a file into it and gives its path. */
export function temporaryFolder(): { write(name: string, bytes: Uint8Array | string): string; path(name: string): string; remove(): void } {
  const folder = mkdtempSync(join(tmpdir(), "millrace-engine-"));
  const path = (name: string): string => join(folder, name);
  return {
    path,
    write: (name, bytes) => {
      writeFileSync(path(name), bytes);
      return path(name);
    },
    remove: () => rmSync(folder, { recursive: true }),
  };
}
