/** Reads the golden logits that scripts/golden-logits.py wrote. */
import { readFileSync } from "node:fs";

export interface GoldenPrompt {
  name: string;
  tokens: Int32Array;
  positions: GoldenPosition[];
}

export interface GoldenPosition {
  /** ln of the sum of e^logit over the vocabulary. */
  logSumExp: number;
  /** The likeliest token, the second, then ids drawn at random. */
  ids: number[];
  logits: number[];
}

interface Header {
  samples: number;
  /** Ids with spaces between them. */
  prompts: { name: string; tokens: string }[];
}

/** golden.json has the prompts; golden.bin has per position, little-endian: f32 logSumExp, u32 ids, f32 logits. */
export function readGolden(): GoldenPrompt[] {
  const header = JSON.parse(readFileSync(new URL("fixtures/golden.json", import.meta.url), "utf8")) as Header;
  const prompts = header.prompts.map(({ name, tokens }) => ({ name, tokens: Int32Array.from(tokens.split(" "), Number) }));
  const bytes = readFileSync(new URL("fixtures/golden.bin", import.meta.url));
  const count = 2 + header.samples;
  const recordBytes = 4 + 8 * count;
  const total = prompts.reduce((sum, { tokens }) => sum + tokens.length, 0);
  if (bytes.length !== total * recordBytes)
    throw new Error(
      `golden.bin has ${bytes.length} bytes, not ${total} records of ${recordBytes}: remake it with scripts/golden-logits.py`,
    );
  let at = 0;
  const position = (): GoldenPosition => {
    const start = at;
    at += recordBytes;
    return {
      logSumExp: bytes.readFloatLE(start),
      ids: Array.from({ length: count }, (_, index) => bytes.readUInt32LE(start + 4 + 4 * index)),
      logits: Array.from({ length: count }, (_, index) => bytes.readFloatLE(start + 4 + 4 * count + 4 * index)),
    };
  };
  return prompts.map((prompt) => ({ ...prompt, positions: Array.from(prompt.tokens, position) }));
}
