/** Every fixture through the engine's public face: a directory goes in, transformers' logits come out. engine/test/golden.test.cpp has the rest. */
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { Engine } from "../../engine/binding/index.js";

/** Of the deviation of the model's logits. */
const errorMax = 1e-3;

const folder = new URL("fixtures/models/", import.meta.url);

interface Prompt {
  contextTokens: number;
  tokens: Int32Array;
  positions: Int32Array;
  ids: Int32Array;
  /** `[positions][ids]` */
  logits: Float32Array;
}

/** scripts/golden-models.py has the layout. */
function readGolden(name: string): { prompts: Prompt[]; deviation: number } {
  const bytes = readFileSync(new URL(`${name}/golden.bin`, folder));
  let at = 0;
  const next = (): number => {
    at += 4;
    return at - 4;
  };
  const integers = (count: number): Int32Array => Int32Array.from({ length: count }, () => bytes.readInt32LE(next()));
  const floats = (count: number): Float32Array => Float32Array.from({ length: count }, () => bytes.readFloatLE(next()));
  const integer = (): number => integers(1)[0] as number;
  const prompts = Array.from({ length: integer() }, () => {
    const contextTokens = integer();
    const [tokens, positions, ids] = [integers(integer()), integers(integer()), integers(integer())];
    return { contextTokens, tokens, positions, ids, logits: floats(positions.length * ids.length) };
  });
  return { prompts, deviation: floats(1)[0] as number };
}

function largestError({ tokens, positions, ids, logits }: Prompt, computed: Float32Array): number {
  const vocabulary = computed.length / tokens.length;
  let largest = 0;
  for (const [row, position] of positions.entries())
    for (const [column, id] of ids.entries())
      largest = Math.max(
        largest,
        Math.abs((computed[position * vocabulary + id] as number) - (logits[row * ids.length + column] as number)),
      );
  return largest;
}

test.each(readdirSync(folder))("%s", async (name) => {
  const { prompts, deviation } = readGolden(name);
  for (const prompt of prompts) {
    const engine = await Engine.load({
      path: fileURLToPath(new URL(name, folder)),
      precision: "float32",
      contextTokens: prompt.contextTokens,
      threads: 2,
      slots: 1,
    });
    try {
      expect(engine.info.vocabularySize).toBe(272);
      expect(largestError(prompt, await engine.evaluate(prompt.tokens, 200))).toBeLessThan(errorMax * deviation);
    } finally {
      await engine.close();
    }
  }
});
