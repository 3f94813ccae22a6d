/** This engine as a contender, timed through its public face by the wall clock: from submit to the last event. */
import { readFileSync } from "node:fs";
import { Engine, type GenerateRequest } from "../../engine/binding/index.js";
import { tokensOfText } from "../eval/windows.js";
import { type ChildOptions, failed, peakBytesOf, serve } from "./child.js";
import { DecodeMeter, workload } from "./workload.js";

const { model, threads, textFile } = JSON.parse(process.argv[2] as string) as ChildOptions;
const greedy = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 1,
  stop: [],
};
/** The first token comes out of the prefill; the others take a step each. */
const maxTokens = workload.generatedTokens + 1;

class Millrace {
  private constructor(
    private readonly engine: Engine,
    private readonly prompts: Int32Array[],
  ) {}

  /** Keeps the prompts whose answers run to their full length, which also warms everything up. */
  static async start(engine: Engine, tokens: Int32Array): Promise<Millrace> {
    const wanted = Math.max(...workload.batches);
    const all = Array.from({ length: Math.floor(tokens.length / workload.promptTokens) }, (_, index) =>
      tokens.slice(index * workload.promptTokens, (index + 1) * workload.promptTokens),
    );
    const prompts: Int32Array[] = [];
    for (let first = 0; first < all.length && prompts.length < wanted; first += wanted) {
      const candidates = all.slice(first, first + wanted);
      const ends = await Promise.all(candidates.map((prompt) => generate(engine, prompt, maxTokens, () => {})));
      prompts.push(...candidates.filter((_, index) => ends[index] === "length"));
    }
    if (prompts.length < wanted) throw new Error(`only ${prompts.length} prompts have answers of ${maxTokens} tokens`);
    return new Millrace(engine, prompts.slice(0, wanted));
  }

  async prefill(): Promise<number> {
    // Each time other tokens, so that nothing computed before can be used again.
    const prompt = Int32Array.from({ length: workload.prefillTokens }, () => Math.floor(Math.random() * this.engine.info.vocabularySize));
    const started = performance.now();
    await generate(this.engine, prompt, 1, () => {});
    return (1_000 * prompt.length) / (performance.now() - started);
  }

  async decode(batch: number): Promise<{ decode: number; whole: number }> {
    const meter = new DecodeMeter(batch);
    const running = this.prompts
      .slice(0, batch)
      .map((prompt, index) => generate(this.engine, prompt, maxTokens, (count) => meter.reached(index, count)));
    for (const reason of await Promise.all(running))
      if (reason !== "length") throw new Error(`an answer ended with ${reason}, not at its length`);
    return meter.rates(workload.promptTokens);
  }
}

/** @param reached is told how many tokens there are by now. @returns why it ended. */
function generate(engine: Engine, prompt: Int32Array, tokens: number, reached: (count: number) => void): Promise<string> {
  return new Promise((resolve) => {
    const request: GenerateRequest = { prompt, maxTokens: tokens, ...greedy };
    engine.submit(request, (event) => {
      if (event.kind === "tokens" || event.kind === "finished") reached(event.seq);
      if (event.kind === "finished") resolve(event.reason);
    });
  });
}

try {
  const nodeBytes = peakBytesOf(process.pid) ?? 0;
  const engine = await Engine.load({ path: model, threads, contextTokens: workload.contextTokens, slots: Math.max(...workload.batches) });
  const tokens = await tokensOfText(engine.vocabulary(), readFileSync(textFile, "utf8"));
  const about = [...engine.info.log, `Node.js itself: ${Math.round(nodeBytes / 1_048_576)} MiB resident before the model was loaded`];
  const contender = await Millrace.start(engine, tokens);
  await serve(about, contender);
  await engine.close();
} catch (error) {
  failed(error);
}
