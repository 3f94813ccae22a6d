/** How far what is timed stands from float32: this engine's fast path and llama.cpp, on the same windows of the same text. */
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import type { LoadOptions } from "../../engine/binding/index.js";
import { describeMethod, describeScores } from "../eval/describe.js";
import { checkYardstick, EngineSource } from "../eval/engine.js";
import { type LogitSource, type Score, score } from "../eval/score.js";
import { tokensOfText, windowsOf } from "../eval/windows.js";
import { Progress } from "../setup/progress.js";
import type { FlashAttention } from "./llamaCpp.js";
import { PeerLogits } from "./peerLogits.js";

const window = { window: 512, skip: 256 };

/** @param timed llama.cpp's settings. @param windowsMax the text's first windows; undefined is all. @returns float32, ours, then llama.cpp's. */
export async function measureKl(
  options: LoadOptions & { threads: number },
  timed: FlashAttention[],
  textFile: string,
  windowsMax: number | undefined,
  say: (line: string) => void,
): Promise<Score[]> {
  const sources: LogitSource[] = [];
  try {
    const yardstick = await EngineSource.load({ ...options, precision: "float32" });
    sources.push(yardstick);
    const fast = await EngineSource.load(options);
    sources.push(fast);
    for (const flashAttention of timed) {
      const peer = await PeerLogits.start(options.path, options.threads, flashAttention);
      sources.push(peer);
      say(`${peer.name}: ${peer.systemInfo()}`);
    }
    const vocabulary = fast.engine.vocabulary();
    const tokens = await tokensOfText(vocabulary, await readFile(textFile, "utf8"));
    const difference = await checkYardstick(yardstick, options, tokens);
    const windows = windowsOf(tokens, vocabulary, window.window, window.skip).slice(0, windowsMax);
    say(`\n${describeMethod(basename(textFile), tokens.length, windows, window)}`);
    say(`KL from float32, which differs from the plain C++ reference by at most ${difference.toExponential(1)} in any logit`);
    const scores = await score(sources, windows, window.skip, new Progress().begin("scoring", ""));
    say(describeScores(scores));
    describeBars(scores, say);
    return scores;
  } finally {
    for (const source of sources) await source.close();
  }
}

function describeBars([yardstick, ours, ...peers]: Score[], say: (line: string) => void): void {
  if (!yardstick || !ours?.distance) return;
  const percent = (score: Score): string => `${(100 * (ours.perplexity / score.perplexity - 1)).toFixed(2)}%`;
  say(`our perplexity differs from float32's by ${percent(yardstick)}`);
  for (const peer of peers)
    if (peer.distance)
      say(
        `our KL is ${(ours.distance.klMean / peer.distance.klMean).toFixed(3)} times that of ${peer.name}, our perplexity differs by ${percent(peer)}`,
      );
}
