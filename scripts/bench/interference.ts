/**
 * `npm run bench -- interference`: what a stream feels of others' prompts. Eight streams decode while a prompt of 500 tokens arrives every
 * 4 s; the gaps between their tokens are held against those of the same streams at the same positions with nobody arriving. llama.cpp's
 * server takes its turn under the same load. docs/benchmarks.md says how each figure comes about.
 */
import { readFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { Engine } from "../../engine/binding/index.js";
import { table } from "../eval/describe.js";
import { tokensOfText } from "../eval/windows.js";
import { compare, type Figures, load, type Prompts, runLoaded, runQuiet } from "./interferenceLoad.js";
import { LlamaServer, Millrace, type ServerOptions, type TokenServer } from "./interferenceServers.js";
import { buildLlamaCpp, llamaCpp } from "./peers.js";

export interface InterferenceBenchOptions {
  model: string;
  threads: number;
  quick: boolean;
  say: (line: string) => void;
}

const textFile = new URL("../../test/engine/fixtures/persuasion.txt", import.meta.url);
/** Without prompts half before and half after, in whole rounds of streams. */
const seconds = { quick: { quiet: 16, loaded: 26 }, full: { quiet: 60, loaded: 121 } };
/** Each setting of the peer is tried for so long; the one with the least p99 gap is measured in full. */
const trial = { quiet: 12, loaded: 26 };
const warmUpSeconds = 6;
/** More than streams and one prompt, for whoever lets prompts pile up. */
const slots = 12;
const contextTokens = 576;
const quietLoadMax = 0.5;
const bars = { p99OverQuiet: 1.5, ttftP95Ms: 4_000 };

/** @returns all figures, for `--json`. */
export async function benchInterference({ model, threads, quick, say }: InterferenceBenchOptions): Promise<object> {
  await buildLlamaCpp(say);
  const busy = loadavg()[0] as number;
  say(`machine: ${cpus()[0]?.model.trim()}, ${cpus().length} cores, load ${busy.toFixed(2)} at the start, ${threads} threads`);
  if (busy > quietLoadMax) say(`the load is over ${quietLoadMax}: something else runs here, and these figures are not to be quoted`);
  const options: ServerOptions = { model, threads, slots, contextTokens };
  const text = await textOf(model);

  const millrace = await Millrace.start(options);
  for (const line of millrace.about) say(`millrace: ${line}`);
  const vocabulary = millrace.vocabularySize;
  const length = quick ? seconds.quick : seconds.full;
  const ours = await closing(millrace, (server) => measure(server, makePrompts(text, vocabulary), length));
  say(`millrace: measured`);

  say(llamaCpp.version);
  const trials: Figures[] = [];
  const settings = (["on", "off"] as const).flatMap((flashAttention) => [512, 64].map((batchTokens) => ({ flashAttention, batchTokens })));
  for (const setting of settings) {
    const server = await LlamaServer.start({ ...options, ...setting });
    trials.push(await closing(server, () => measure(server, makePrompts(text, vocabulary), trial)));
    say(`${server.name}: p99 gap ${(trials.at(-1) as Figures).loaded.p99.toFixed(1)} ms in a trial of ${trial.loaded} s`);
  }
  const best = trials.reduce((least, each, index) => (each.loaded.p99 < (trials[least] as Figures).loaded.p99 ? index : least), 0);
  const peerServer = await LlamaServer.start({ ...options, ...(settings[best] as (typeof settings)[number]) });
  const peer = await closing(peerServer, (server) => measure(server, makePrompts(text, vocabulary), length));

  say(
    `\n${load.streams} streams, a prompt of ${load.promptTokens} tokens every ${load.everyMs / 1_000} s for ${length.loaded - 1} s; gaps in ms`,
  );
  say(describe([ours, peer, ...trials.map((each) => ({ ...each, name: `${each.name} (trial)` }))]));
  const isGood = ours.p99OverQuiet <= bars.p99OverQuiet && ours.ttftMs.p95 <= bars.ttftP95Ms && ours.completed === ours.sent;
  say(
    `\nthe bar: p99 at most ${bars.p99OverQuiet} times the quiet one, every prompt completes, TTFT p95 under ${bars.ttftP95Ms} ms: ${isGood ? "kept" : "missed"}`,
  );
  return { threads, busy, load, seconds: length, bars, ours, peer, trials };
}

async function measure(server: TokenServer, prompts: Prompts, length: { quiet: number; loaded: number }): Promise<Figures> {
  await runLoaded(server, prompts, warmUpSeconds);
  const before = await runQuiet(server, prompts, length.quiet / 2);
  const loaded = await runLoaded(server, prompts, length.loaded);
  const after = await runQuiet(server, prompts, length.quiet / 2);
  return compare(server.name, [before, after], loaded);
}

async function closing<Result>(server: TokenServer, work: (server: TokenServer) => Promise<Result>): Promise<Result> {
  try {
    return await work(server);
  } finally {
    await server.close();
  }
}

async function textOf(model: string): Promise<Int32Array> {
  const engine = await Engine.load({ path: model, threads: 1, slots: 1, contextTokens });
  const text = await tokensOfText(engine.vocabulary(), readFileSync(textFile, "utf8"));
  await engine.close();
  return text;
}

/** Streams continue the text from another place each; arriving prompts are random tokens. So nobody finds a prompt computed before. */
function makePrompts(text: Int32Array, vocabulary: number): Prompts {
  const wholes = Math.floor(text.length / load.streamPromptTokens);
  let next = 0;
  return {
    stream: () => {
      // Once all places are used the next ones lie between them.
      const first = (next % wholes) * load.streamPromptTokens + Math.floor(next / wholes);
      next++;
      return text.slice(first, first + load.streamPromptTokens);
    },
    arriving: () => Int32Array.from({ length: load.promptTokens }, () => Math.floor(Math.random() * vocabulary)),
  };
}

function describe(all: Figures[]): string {
  const ms = (value: number): string => value.toFixed(1);
  const header = ["", "quiet p50", "p99", "with prompts p50", "p95", "p99", "max", "p99 / quiet p99", "p99 of ratios"];
  header.push("TTFT p50", "p95", "completed", "tokens/s");
  return table(
    header,
    all.map(({ name, quiet, loaded, p99OverQuiet, p99OfRatios, ttftMs, sent, completed, tokensPerSecond }) => [
      name,
      ...[quiet.p50, quiet.p99, loaded.p50, loaded.p95, loaded.p99, loaded.max].map(ms),
      p99OverQuiet.toFixed(2),
      p99OfRatios.toFixed(2),
      ...[ttftMs.p50, ttftMs.p95].map((value) => value.toFixed(0)),
      `${completed} of ${sent}`,
      `${tokensPerSecond.quiet.toFixed(0)} / ${tokensPerSecond.loaded.toFixed(0)}`,
    ]),
  );
}
