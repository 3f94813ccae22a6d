/** The weights that `npm run bench -- engine` runs, and what each must show beside llama.cpp. */
import { mkdir, rename } from "node:fs/promises";
import { basename, join } from "node:path";
import { sha256OfFile, stampedHash, writeStamp } from "../setup/hash.js";
import { resolveModel } from "../setup/model.js";
import { silent } from "../setup/progress.js";
import { buildLlamaCpp, llamaCpp, must, peersFolder } from "./peers.js";

/** Ratios to llama.cpp's speed. */
export interface Bars {
  decode: Record<number, number>;
  prefill: number;
}

export interface Weights {
  name: string;
  path: string;
  /** Undefined for a model that the user names. */
  bars: Bars | undefined;
}

const asItComes: Bars = { decode: { 1: 1.5, 8: 2.5, 32: 2.5 }, prefill: 2.5 };
/** Types that llama.cpp repacks for the instructions at hand, as this engine does with all. */
const requantized = ["Q4_0", "Q8_0"];
const requantizedBars: Bars = { decode: { 1: 1.2, 8: 1.5, 32: 1.5 }, prefill: 1.4 };

/** @param model what `--model` names, to be run alone. Default: the default model, and the same weights in two other types. */
export async function chooseWeights(model: string | undefined, say: (line: string) => void): Promise<Weights[]> {
  const path = await resolveModel(model, silent());
  await buildLlamaCpp(say);
  if (model !== undefined) return [{ name: basename(path), path, bars: undefined }];
  const weights: Weights[] = [{ name: "Q4_1, as it comes", path, bars: asItComes }];
  for (const type of requantized)
    weights.push({ name: `${type}, requantized`, path: await requantize(path, type, say), bars: requantizedBars });
  return weights;
}

/** Runs the peer's llama-quantize unless its result is there. @returns the result's path. */
async function requantize(path: string, type: string, say: (line: string) => void): Promise<string> {
  const folder = join(peersFolder, "models");
  await mkdir(folder, { recursive: true });
  // The source's hash is in the name, so that another source is another file.
  const source = await sha256OfFile(path);
  const target = join(folder, `${basename(path, ".gguf")}.${source.slice(0, 12)}.${type}.gguf`);
  if ((await stampedHash(target)) !== undefined) return target;
  say(`requantizing ${basename(path)} to ${type}`);
  const partial = `${target}.partial`;
  await must(llamaCpp.quantize, ["--allow-requantize", path, partial, type]);
  await rename(partial, target);
  await writeStamp(target, await sha256OfFile(target));
  return target;
}
