/** This engine as a source of logits. */
import { Engine, EngineError, type LoadOptions } from "../../engine/binding/index.js";
import type { LogitSource } from "./score.js";

/** Tokens over which the yardstick is checked: the plain reference is slow. */
const checkTokens = 48;
/** float32 sums of some thousand terms in two orders differ by about a tenth of this. */
const checkDifferenceMax = 1e-3;

export class EngineSource implements LogitSource {
  private constructor(
    readonly name: string,
    readonly engine: Engine,
    private readonly chunkTokens: number,
  ) {}

  static async load(options: LoadOptions, chunkTokens = 128): Promise<EngineSource> {
    const engine = await Engine.load(options);
    return new EngineSource(kernelsOf(engine), engine, chunkTokens);
  }

  logits(tokens: Int32Array): Promise<Float32Array> {
    return this.engine.evaluate(tokens, this.chunkTokens);
  }

  close(): Promise<void> {
    return this.engine.close();
  }
}

/** What the engine chose at load, e.g. `avx512, as stored`. */
export function kernelsOf(engine: Engine): string {
  const line = engine.info.log.find((text) => text.startsWith("kernels: ")) ?? "";
  return line.replace("kernels: ", "").replace(/, \d+ threads?.*/, "");
}

/**
 * The yardstick uses the CPU's best kernels in float32, since the plain C++ reference is too slow for a long text. This shows on the
 * text's beginning that both say the same.
 * @returns the largest difference of any logit. @throws EngineError where it is more than rounding explains.
 */
export async function checkYardstick(yardstick: LogitSource, options: LoadOptions, tokens: Int32Array): Promise<number> {
  const reference = await EngineSource.load({ ...options, kernels: "reference", precision: "float32" });
  try {
    const beginning = tokens.slice(0, checkTokens);
    const [mine, theirs] = [await yardstick.logits(beginning), await reference.logits(beginning)];
    const difference = mine.reduce((largest, logit, index) => Math.max(largest, Math.abs(logit - (theirs[index] as number))), 0);
    if (!(difference <= checkDifferenceMax))
      throw new EngineError(
        `float32 differs from the plain reference by ${difference}, more than ${checkDifferenceMax}: it is no yardstick`,
      );
    return difference;
  } finally {
    await reference.close();
  }
}
