/**
 * `npm run bench -- prefix`: what the prefix cache saves. The same requests go to an engine that keeps what it computed and to one that
 * does not, in turns; timed by the wall clock from submit to the first token, through the engine's public face. Both give the same answers.
 */

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Engine } from "../../engine/binding/index.js";
import { table } from "../eval/describe.js";
import { tokensOfText } from "../eval/windows.js";
import { greedy } from "./greedy.js";
import { median } from "./workload.js";

export interface PrefixBenchOptions {
  model: string;
  threads: number;
  quick: boolean;
  say: (line: string) => void;
}

/** Of a conversation: so many turns, each of a question and an answer. */
const conversation = { turns: 6, questionTokens: 40, answerTokens: 60 };
/** Of requests that have their beginning in common. */
const common = { requests: 4, tokens: 500, ownTokens: 30, answerTokens: 8 };
const rounds = { quick: 1, full: 5 };
const textFile = fileURLToPath(new URL("../../test/engine/fixtures/persuasion.txt", import.meta.url));

interface First {
  ms: number;
  promptTokens: number;
  cachedTokens: number;
  ids: number[];
}

interface Pair {
  name: string;
  kept: First[];
  plain: First[];
}

/** @returns all figures, for `--json`. */
export async function benchPrefix({ model, threads, quick, say }: PrefixBenchOptions): Promise<object> {
  const base = { path: model, threads, contextTokens: 2_048, slots: 4 };
  const [keeping, plain] = [await Engine.load(base), await Engine.load({ ...base, prefixCache: false })];
  const text = await tokensOfText(keeping.vocabulary(), readFileSync(textFile, "utf8"));
  const pairs: Pair[] = [];
  const note = (name: string, pair: [First, First]): void => {
    const found = pairs.find((each) => each.name === name) ?? { name, kept: [], plain: [] };
    if (found.kept.length === 0) pairs.push(found);
    found.kept.push(pair[0]);
    found.plain.push(pair[1]);
    if (`${pair[0].ids}` !== `${pair[1].ids}`) throw new Error(`${name}: the cache changed the answer`);
  };
  for (let round = 0; round < (quick ? rounds.quick : rounds.full); round++) {
    // Other text in each round, so that no round finds what the one before computed.
    let at = round * 1_500;
    const take = (count: number): number[] => {
      at += count;
      return [...text.subarray(at - count, at)];
    };
    const both = async (prompt: number[], tokens: number): Promise<[First, First]> => [
      await first(keeping, prompt, tokens),
      await first(plain, prompt, tokens),
    ];
    let said: number[] = [];
    for (let turn = 1; turn <= conversation.turns; turn++) {
      said = [...said, ...take(conversation.questionTokens)];
      const pair = await both(said, conversation.answerTokens);
      note(`turn ${turn}`, pair);
      said = [...said, ...pair[0].ids];
    }
    const system = take(common.tokens);
    for (let request = 1; request <= common.requests; request++)
      note(
        request === 1 ? `${common.tokens} tokens, the first` : `${common.tokens} tokens in common`,
        await both([...system, ...take(common.ownTokens)], common.answerTokens),
      );
  }
  await Promise.all([keeping.close(), plain.close()]);
  say(table(["", "prompt", "of it cached", "first token, ms", "without the cache, ms", "ratio"], pairs.map(row)));
  return { conversation, common, pairs: pairs.map(({ name, kept, plain }) => ({ name, kept: kept.map(brief), plain: plain.map(brief) })) };
}

function row({ name, kept, plain }: Pair): string[] {
  const of = (all: First[], key: "ms" | "promptTokens" | "cachedTokens"): number => median(all.map((each) => each[key]));
  const ratio = median(kept.map(({ ms }, index) => (plain[index]?.ms ?? 0) / ms));
  return [
    name,
    of(kept, "promptTokens").toFixed(0),
    of(kept, "cachedTokens").toFixed(0),
    of(kept, "ms").toFixed(1),
    of(plain, "ms").toFixed(1),
    ratio.toFixed(1),
  ];
}

const brief = ({ ms, promptTokens, cachedTokens }: First): object => ({ ms, promptTokens, cachedTokens });

function first(engine: Engine, prompt: number[], maxTokens: number): Promise<First> {
  return new Promise((resolve, reject) => {
    const started = performance.now();
    let ms = 0;
    const ids: number[] = [];
    engine.submit({ prompt: Int32Array.from(prompt), maxTokens, ...greedy }, (event) => {
      if (event.kind === "tokens") {
        ms ||= performance.now() - started;
        ids.push(...event.ids);
      }
      if (event.kind !== "finished") return;
      const { reason, promptTokens, cachedTokens } = event;
      if (reason === "failed" || ms === 0) reject(new Error(`an answer ended with ${reason} before its first token`));
      else resolve({ ms, promptTokens, cachedTokens, ids });
    });
  });
}
