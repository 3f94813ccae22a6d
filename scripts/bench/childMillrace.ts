/** This engine as a contender, timed through its public face by the wall clock: from submit to the last event. */
import { readFileSync } from "node:fs";
import { Engine, type GenerateRequest } from "../../engine/binding/index.js";
import { tokensOfText } from "../eval/windows.js";
import { type ChildOptions, failed, peakBytesOf, serve } from "./child.js";
import { greedy } from "./greedy.js";
import { DecodeMeter, type DecodeRates, NeverFullError, workload } from "./workload.js";

const { model, threads, textFile } = JSON.parse(process.argv[2] as string) as ChildOptions;
const asked = {
  ...greedy,
  // All shall begin before any ends: first tokens are pressed for, the pace of the others is not.
  ttftMs: 500,
  itlMs: 5_000,
};
const attemptsMax = 5;
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

  /** Beside much else on the machine the first may end before the last begins, which says nothing of a full batch: then once more. */
  async decode(batch: number): Promise<DecodeRates> {
    for (let attempt = 1; ; attempt++)
      try {
        return await this.#decode(batch);
      } catch (error) {
        if (!(error instanceof NeverFullError) || attempt === attemptsMax) throw error;
      }
  }

  async #decode(batch: number): Promise<DecodeRates> {
    const meter = new DecodeMeter(batch, maxTokens);
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
    const request: GenerateRequest = { prompt, maxTokens: tokens, ...asked };
    engine.submit(request, (event) => {
      if (event.kind === "tokens" || event.kind === "finished") reached(event.seq);
      if (event.kind === "finished") resolve(event.reason);
    });
  });
}

try {
  const nodeBytes = peakBytesOf(process.pid) ?? 0;
  // The same prompts run in every round: none may profit from the round before.
  // Of its slots a class leaves some to those with tighter deadlines: a quarter more than run at once, so that all of them can.
  const slots = Math.ceil(1.25 * Math.max(...workload.batches));
  const options = { path: model, threads, contextTokens: workload.contextTokens, slots, prefixCache: false };
  const engine = await Engine.load(options);
  const tokens = await tokensOfText(engine.vocabulary(), readFileSync(textFile, "utf8"));
  const about = [...engine.info.log, `Node.js itself: ${Math.round(nodeBytes / 1_048_576)} MiB resident before the model was loaded`];
  const contender = await Millrace.start(engine, tokens);
  await serve(about, contender, engine.info.work);
  await engine.close();
} catch (error) {
  failed(error);
}
