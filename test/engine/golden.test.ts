/** The engine on the real model: its reference against transformers, its fast paths against its reference. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Engine, EngineError, type KernelSet, type LoadOptions } from "../../engine/binding/index.js";
import { indexOfMax, logSumExp, score } from "../../scripts/eval/score.js";
import { defaultModelPath } from "../../scripts/setup/model.js";
import { readGolden } from "./golden.js";

/** Of any logit, in float32, between two engines that add in different orders. */
const differenceMax = 1e-2;
/**
 * Of the fast path from float32, over these prompts. What rounding activations to 8 bits and keys and values to 16 costs on the
 * 20,000 tokens of fixtures/persuasion.txt is 0.003 nats (docs/benchmarks.md); a fault in a scale or a sum costs 0.1 and more.
 */
const klMeanMax = 0.01;
/** Slow on a busy machine: the plain C++ path computes 1,005 positions in float32. */
const referenceMsMax = 180_000;

const path = defaultModelPath();
const prompts = readGolden();
const contextTokens = 512;
let reference: Float32Array[];

async function evaluateAll(options: Partial<LoadOptions>, chunkTokens: number): Promise<Float32Array[]> {
  const engine = await Engine.load({ path, contextTokens, ...options });
  try {
    const logits = [];
    for (const { tokens } of prompts) logits.push(await engine.evaluate(tokens, chunkTokens));
    return logits;
  } finally {
    await engine.close();
  }
}

beforeAll(async () => {
  reference = await evaluateAll({ kernels: "reference", precision: "float32" }, 128);
}, referenceMsMax);
afterAll(() => {
  reference = [];
});

// Every sampled logit, the two best and the sum of all are transformers'; the likeliest token is, unless two are as good as equal.
test.each(prompts.map((prompt, index) => ({ ...prompt, index })))(
  "the reference agrees with transformers on $name",
  ({ index, tokens, positions }) => {
    const logits = reference[index] as Float32Array;
    const vocabulary = logits.length / tokens.length;
    let largest = 0;
    for (const [position, golden] of positions.entries()) {
      const row = logits.subarray(position * vocabulary, (position + 1) * vocabulary);
      largest = Math.max(largest, Math.abs(logSumExp(row) - golden.logSumExp));
      for (const [at, id] of golden.ids.entries())
        largest = Math.max(largest, Math.abs((row[id] as number) - (golden.logits[at] as number)));
      const [best, second] = golden.logits as [number, number];
      if (best - second > differenceMax) expect(indexOfMax(row), `the likeliest token after position ${position}`).toBe(golden.ids[0]);
    }
    expect(largest).toBeLessThan(differenceMax);
  },
);

describe.each<KernelSet>(["avx2", "avx512"])("kernels %s", (kernels) => {
  let isHere = true;
  beforeAll(async () => {
    const engine = await Engine.load({ path, contextTokens, kernels }).catch((error: unknown) => {
      if (error instanceof EngineError && error.message.includes("lacks the kernels")) return undefined;
      throw error;
    });
    isHere = engine !== undefined;
    await engine?.close();
  });

  test("the fast path stays within its quantization's error of the reference", async (context) => {
    if (!isHere) context.skip(`this CPU lacks ${kernels}`);
    const fast = await evaluateAll({ kernels }, 128);
    const source = (name: string, all: Float32Array[]) => ({
      name,
      logits: async (tokens: Int32Array) => all[prompts.findIndex((prompt) => prompt.tokens === tokens)] as Float32Array,
      close: async () => {},
    });
    const windows = prompts.map(({ tokens }) => tokens);
    const [, compared] = await score([source("reference", reference), source(kernels, fast)], windows, 0);
    expect(compared?.positions).toBe(windows.reduce((sum, tokens) => sum + tokens.length - 1, 0));
    expect(compared?.distance?.klMean).toBeLessThan(klMeanMax);
    expect(compared?.distance?.top1).toBeGreaterThan(0.9);
  });

  // DESIGN.md, determinism (b): sums run in one fixed order, and threads never split one.
  test("logits are the same bits whatever the chunks and the threads", async (context) => {
    if (!isHere) context.skip(`this CPU lacks ${kernels}`);
    const tokens = prompts.find(({ name }) => name === "code")?.tokens as Int32Array;
    let first: Buffer | undefined;
    for (const threads of [1, 2, 3]) {
      const engine = await Engine.load({ path, contextTokens, kernels, threads });
      for (const chunkTokens of [1, 7, 16, 512]) {
        const logits = await engine.evaluate(tokens, chunkTokens);
        const bits = Buffer.from(logits.buffer, logits.byteOffset, logits.byteLength);
        first ??= Buffer.from(bits);
        expect(bits.equals(first), `${threads} threads, ${chunkTokens} tokens a chunk`).toBe(true);
      }
      await engine.close();
    }
  });
});
