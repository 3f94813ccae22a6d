/**
 * `npm run eval`: what a model makes of tokens or of a text, for anyone who wants to check the engine.
 *
 *     npm run eval -- --tokens 1,2,3 --logits FILE     raw logits, float32 little-endian [positions][vocabulary]
 *     npm run eval -- --text FILE [--kl]               perplexity, and with --kl how far the fast path is from float32
 */
import { readFile, writeFile } from "node:fs/promises";
import { endianness } from "node:os";
import { parseArgs } from "node:util";
import { Engine, type KernelSet, type KvType, kernelSets, type LoadOptions } from "../engine/binding/index.js";
import { describeMethod, describeScores } from "./eval/describe.js";
import { checkYardstick, EngineSource } from "./eval/engine.js";
import { score } from "./eval/score.js";
import { tokensOfText, windowsOf } from "./eval/windows.js";
import { runAsCommand } from "./setup/command.js";
import { SetupError } from "./setup/exec.js";
import { resolveModel } from "./setup/model.js";
import { Progress, silent } from "./setup/progress.js";

const usage = `npm run eval -- [--model PATH] --tokens 1,2,3 --logits FILE
npm run eval -- [--model PATH] --text FILE [--kl] [--window 512] [--skip 256] [--limit TOKENS]
both: [--kernels auto|cpu|reference|avx2|avx512|hopper] [--precision stored|fp8|float32] [--kv-type f16|q8] [--threads N] [--ctx N] [--chunk N]`;

const precisions = ["stored", "fp8", "float32"];
const kvTypes = ["f16", "q8"];

type Arguments = ReturnType<typeof readArguments>;

function readArguments(args: string[]) {
  const string = { type: "string" } as const;
  const boolean = { type: "boolean", default: false } as const;
  const { values } = parseArgs({
    args,
    options: {
      model: string,
      tokens: string,
      logits: string,
      text: string,
      kl: boolean,
      window: string,
      skip: string,
      limit: string,
      kernels: string,
      precision: string,
      "kv-type": string,
      threads: string,
      ctx: string,
      chunk: string,
      help: boolean,
    },
  });
  const { model, tokens, logits, text, kl, kernels = "auto", precision = "stored", "kv-type": kvType = "f16" } = values;
  if (values.help) throw new SetupError(usage);
  if ((tokens === undefined) === (text === undefined)) throw new SetupError(`give either --tokens or --text\n${usage}`);
  if ((tokens === undefined) !== (logits === undefined)) throw new SetupError(`--tokens and --logits go together\n${usage}`);
  if (kl && text === undefined) throw new SetupError(`--kl compares over a text; give --text FILE\n${usage}`);
  if (!kernelSets.includes(kernels as KernelSet)) throw new SetupError(`--kernels is ${kernels}, not one of ${kernelSets.join(", ")}`);
  if (!precisions.includes(precision)) throw new SetupError(`--precision is ${precision}, not one of ${precisions.join(", ")}`);
  if (!kvTypes.includes(kvType)) throw new SetupError(`--kv-type is ${kvType}, not one of ${kvTypes.join(", ")}`);
  const window = integer("--window", values.window, 2) ?? 512;
  const skip = integer("--skip", values.skip, 0) ?? window >> 1;
  if (skip > window - 2) throw new SetupError(`--skip ${skip} leaves nothing to score in a window of ${window}`);
  const numbers = {
    threads: integer("--threads", values.threads, 1),
    contextTokens: integer("--ctx", values.ctx, 16),
    limit: integer("--limit", values.limit, 2) ?? Number.POSITIVE_INFINITY,
    chunk: integer("--chunk", values.chunk, 1) ?? 128,
  };
  return { model, tokens, logits, text, kl, kernels, precision, kvType, window, skip, ...numbers };
}

function integer(flag: string, text: string | undefined, min: number): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < min) throw new SetupError(`${flag} is ${text}, not an integer from ${min}`);
  return value;
}

function loadOptions(path: string, args: Arguments): LoadOptions {
  const options: LoadOptions = {
    path,
    kernels: args.kernels as KernelSet,
    precision: args.precision as "stored" | "fp8" | "float32",
    kvType: args.kvType as KvType,
  };
  if (args.threads !== undefined) options.threads = args.threads;
  if (args.contextTokens !== undefined) options.contextTokens = args.contextTokens;
  return options;
}

async function writeLogits(path: string, args: Arguments, list: string, file: string): Promise<void> {
  const tokens = list.split(",").map((text) => {
    if (!/^\s*\d+\s*$/.test(text))
      throw new SetupError(`--tokens has ${JSON.stringify(text)}, which is not a token id; give ids like 1,2,3`);
    return Number(text);
  });
  const engine = await Engine.load(loadOptions(path, args));
  try {
    for (const line of engine.info.log) console.error(line);
    const logits = await engine.evaluate(Int32Array.from(tokens), args.chunk);
    if (endianness() !== "LE") Buffer.from(logits.buffer).swap32();
    await writeFile(file, new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength));
    console.log(`${file}: float32 [${tokens.length}][${engine.info.vocabularySize}]`);
  } finally {
    await engine.close();
  }
}

async function scoreText(path: string, args: Arguments, file: string): Promise<void> {
  const text = await readFile(file, "utf8").catch((error: Error) => {
    throw new SetupError(`--text ${file} cannot be read: ${error.message}`);
  });
  const options = loadOptions(path, args);
  const fast = await EngineSource.load(options, args.chunk);
  const sources = [fast];
  try {
    const vocabulary = fast.engine.vocabulary();
    const tokens = (await tokensOfText(vocabulary, text)).subarray(0, args.limit);
    const windows = windowsOf(tokens, vocabulary, args.window, args.skip);
    for (const line of fast.engine.info.log) console.log(line);
    console.log(describeMethod(file, tokens.length, windows, args));
    if (args.kl) {
      const yardstick = await EngineSource.load({ ...options, kernels: "auto", precision: "float32" }, args.chunk);
      sources.unshift(yardstick);
      const difference = await checkYardstick(yardstick, options, tokens);
      console.log(
        `float32 differs from the plain C++ reference by at most ${difference.toExponential(1)} in any logit of the text's beginning`,
      );
    }
    console.log(describeScores(await score(sources, windows, args.skip, new Progress().begin("scoring", ""))));
  } finally {
    for (const source of sources) await source.close();
  }
}

async function main(): Promise<void> {
  const args = readArguments(process.argv.slice(2));
  const path = await resolveModel(args.model, silent());
  if (args.tokens !== undefined) await writeLogits(path, args, args.tokens, args.logits as string);
  else await scoreText(path, args, args.text as string);
}

await runAsCommand(import.meta.url, main);
