/** node-llama-cpp as a contender: llama.cpp as one would use it from Node, timed as this engine is. */
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { type ChildOptions, failed, serve } from "./child.js";
import { nodeLlamaEntry } from "./nodeLlama.js";
import { DecodeMeter, workload } from "./workload.js";

/** What is used of its API; it is no dependency, so its types are not here. */
interface Sequence {
  clearHistory(): Promise<void>;
  evaluate(tokens: number[], options: { temperature: number; yieldEogToken: boolean }): AsyncGenerator<number>;
}
interface Context {
  getSequence(): Sequence;
}
interface Model {
  tokenize(text: string): number[];
  createContext(options: { sequences: number; contextSize: number; threads: { ideal: number; min: number } }): Promise<Context>;
}
interface Library {
  getLlama(
    options: object,
  ): Promise<{ loadModel(options: object): Promise<Model>; llamaCppRelease: { release: string }; maxThreads: number }>;
}

const { model: modelPath, threads, textFile } = JSON.parse(process.argv[2] as string) as ChildOptions;
const maxTokens = workload.generatedTokens + 1;

async function generate(sequence: Sequence, prompt: number[], tokens: number, reached: (count: number) => void): Promise<void> {
  let count = 0;
  for await (const _ of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    reached(++count);
    if (count === tokens) break;
  }
  if (count < tokens) throw new Error(`an answer ended after ${count} of ${tokens} tokens`);
}

try {
  const library = (await import(pathToFileURL(nodeLlamaEntry).href)) as Library;
  const llama = await library.getLlama({ gpu: false, build: "never", skipDownload: true, logLevel: "error", maxThreads: threads });
  const model = await llama.loadModel({ modelPath });
  const context = await model.createContext({
    sequences: Math.max(...workload.batches),
    contextSize: workload.contextTokens,
    threads: { ideal: threads, min: threads },
  });
  const sequences = workload.batches.length ? Array.from({ length: Math.max(...workload.batches) }, () => context.getSequence()) : [];
  const tokens = model.tokenize(readFileSync(textFile, "utf8"));
  const vocabulary = Math.max(...tokens);
  const prompts = sequences.map((_, index) => tokens.slice(index * workload.promptTokens, (index + 1) * workload.promptTokens));
  const contender = {
    async prefill(): Promise<number> {
      const sequence = sequences[0] as Sequence;
      await sequence.clearHistory();
      const prompt = Array.from({ length: workload.prefillTokens }, () => Math.floor(Math.random() * vocabulary));
      const started = performance.now();
      await generate(sequence, prompt, 1, () => {});
      return (1_000 * prompt.length) / (performance.now() - started);
    },
    async decode(batch: number): Promise<{ decode: number; whole: number }> {
      const chosen = sequences.slice(0, batch);
      for (const sequence of chosen) await sequence.clearHistory();
      const meter = new DecodeMeter(batch, maxTokens);
      await Promise.all(
        chosen.map((sequence, index) => generate(sequence, prompts[index] as number[], maxTokens, (count) => meter.reached(index, count))),
      );
      return meter.rates(workload.promptTokens);
    },
  };
  await contender.decode(1);
  await serve([`llama.cpp ${llama.llamaCppRelease.release}, prebuilt for linux-x64 CPU`], contender);
  process.exit(0);
} catch (error) {
  failed(error);
}
