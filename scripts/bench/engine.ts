/**
 * `npm run bench -- engine`: this engine and its peers on the same files, threads and prompts, taking turns in one run, with the KL of
 * exactly what was timed, and beside another process that wants a core. docs/benchmarks.md says how each figure comes about.
 */
import { stat } from "node:fs/promises";
import { cpus, loadavg } from "node:os";
import { fileURLToPath } from "node:url";
import type { MatrixWork } from "../../engine/binding/index.js";
import { table } from "../eval/describe.js";
import { SetupError } from "../setup/exec.js";
import { ChildContender, type ChildOptions } from "./child.js";
import { measureKl } from "./kl.js";
import { LimitMeter } from "./limits.js";
import { type FlashAttention, LlamaCpp } from "./llamaCpp.js";
import { installNodeLlama, nodeLlamaName } from "./nodeLlama.js";
import { llamaCpp } from "./peers.js";
import { describeBusy, describeSpeed, judge, judgeBusy, ourName, type Speed } from "./speed.js";
import { takeTurns, takeTurnsBusy } from "./turns.js";
import { chooseWeights, type Weights } from "./weights.js";
import { type Contender, median, workload } from "./workload.js";

export interface EngineBenchOptions {
  /** What `--model` names; undefined: the default model as it comes and requantized. */
  model: string | undefined;
  threads: number;
  quick: boolean;
  say: (line: string) => void;
}

const textFile = fileURLToPath(new URL("../../test/engine/fixtures/persuasion.txt", import.meta.url));
/** Windows of the text whose KL `--quick` measures. */
const quickWindows = 4;
const rounds = { quick: 2, full: 5 };
const busyRounds = { quick: 3, full: 7 };
/** Beside the busy core: what ours keeps of its quiet speed, and how many times llama.cpp's it is. */
const busyBars = { kept: 0.6, timesPeer: 2 };
/** Above this, something else runs, and figures are not to be quoted. */
const quietLoadMax = 0.5;

/** @returns all figures, for `--json`. */
export async function benchEngine({ model, threads, quick, say }: EngineBenchOptions): Promise<object> {
  const chosen = await chooseWeights(model, say);
  const load = loadavg()[0] as number;
  const machine = { cpu: cpus()[0]?.model.trim() ?? "unknown", cores: cpus().length, load, threads };
  say(`machine: ${machine.cpu}, ${machine.cores} cores, load ${load.toFixed(2)} at the start, ${threads} threads`);
  if (load > quietLoadMax) say(`the load is over ${quietLoadMax}: something else runs here, and these figures are not to be quoted`);
  say(llamaCpp.version);
  const meter = new LimitMeter(threads);
  await meter.measure();
  const results = [];
  for (const weights of chosen) results.push(await benchWeights(weights, threads, quick, meter, say));
  describeBars(results, say);
  return { machine, limits: meter.best, workload, busyBars, results };
}

type Result = Awaited<ReturnType<typeof benchWeights>>;

async function benchWeights(weights: Weights, threads: number, quick: boolean, meter: LimitMeter, say: (line: string) => void) {
  const { name, path, bars } = weights;
  say(`\n== ${name}`);
  const { contenders, missing, work } = await startContenders({ model: path, threads, textFile }, say);
  const llama = contenders.filter((contender) => contender instanceof LlamaCpp);
  let speeds: Speed[];
  let busy: Awaited<ReturnType<typeof takeTurnsBusy>>;
  try {
    for (const each of contenders) for (const line of each.about) say(`${each.name}: ${line}`);
    speeds = await takeTurns(contenders, quick ? rounds.quick : rounds.full, say);
    // Its threads wait for each other by spinning, so that beside a busy core one alone may be faster than two.
    const alone = threads > 1 ? [new LlamaCpp(path, 1, "on", "llama.cpp, one thread")] : [];
    busy = await takeTurnsBusy([contenders[0] as Contender, ...llama, ...alone], quick ? busyRounds.quick : busyRounds.full);
  } finally {
    for (const contender of contenders) await contender.close();
  }
  await meter.measure();
  const limits = meter.best;
  const fileWeightBytes = llama[0]?.weightBytes || (await stat(path)).size;
  say(
    `\nmemory reads: ${(limits.readBytes / 1e9).toFixed(1)} GB/s; a step of ours reads ${megabytes(work.weightBytes)} of weights, the file has ${megabytes(fileWeightBytes)}`,
  );
  say(`int8: ${(limits.multiplyAdds / 1e9).toFixed(0)} GMAC/s (${limits.instruction}, on registers alone)`);
  say(describeSpeed(speeds, { work, limits, fileWeightBytes }));
  for (const [peer, why] of missing) say(`${peer}: not measured, ${why}`);
  say(`\n${describeBusy(busy)}`);
  const options = { path, threads, contextTokens: workload.contextTokens };
  const scores = await measureKl(options, bestFlashAttention(speeds), textFile, quick ? quickWindows : undefined, say);
  return {
    ...{ name, path, work, fileWeightBytes, speeds, busy, scores, missing: Object.fromEntries(missing) },
    judged: bars && judge(speeds, bars),
    judgedBusy: judgeBusy(
      busy,
      llama.map((each) => each.name),
    ),
  };
}

const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;

async function startContenders(options: ChildOptions, say: (line: string) => void) {
  const { model, threads } = options;
  const ours = await ChildContender.start(ourName, "childMillrace.ts", options);
  const contenders: Contender[] = [ours];
  const missing: [name: string, why: string][] = [];
  for (const flashAttention of ["off", "on"] as const) contenders.push(new LlamaCpp(model, threads, flashAttention));
  try {
    await installNodeLlama(say);
    contenders.push(await ChildContender.start(nodeLlamaName, "childNodeLlama.ts", options));
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    missing.push([nodeLlamaName, error.message]);
  }
  return { contenders, missing, work: ours.work as MatrixWork };
}

/** The setting that decoded fastest at batch 1, and that of the prefill where it is another. */
function bestFlashAttention(speeds: Speed[]): FlashAttention[] {
  const [off, on] = (["off", "on"] as const).map((setting) => speeds.find(({ name }) => name.endsWith(`attention ${setting}`)));
  if (!off || !on) return ["off"];
  const better = (of: (speed: Speed) => number[]): FlashAttention => (median(of(on)) > median(of(off)) ? "on" : "off");
  return [...new Set([better(({ prefill }) => prefill), ...workload.batches.map((batch) => better(({ decode }) => decode[batch] ?? [0]))])];
}

/** The bars of the engine's issue, beside what was measured. */
function describeBars(results: Result[], say: (line: string) => void): void {
  const against = (value: number, bar: number): string => `${value.toFixed(2)} (bar ${bar}${value < bar ? ", MISSED" : ""})`;
  const judged = results.filter((result) => result.judged !== undefined);
  if (judged.length === 0) return;
  const titles = judged[0]?.judged?.map(({ title }) => title) ?? [];
  const rows = judged.map(({ name, judged: columns, judgedBusy: { kept, timesPeer } }) => [
    name,
    ...(columns ?? []).map(({ ratio, bar }) => against(ratio, bar)),
    against(kept, busyBars.kept),
    against(timesPeer, busyBars.timesPeer),
  ]);
  say("\nmedians of the rounds' ratios to llama.cpp's better setting; beside a busy core, of our quiet speed and of llama.cpp's there");
  say(table(["", ...titles, "busy / quiet", "busy / llama.cpp's"], rows));
}
