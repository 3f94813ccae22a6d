/**
 * `npm run bench -- engine`: this engine and its peers on the same file, threads and prompts, taking turns in one run, with the KL of
 * exactly what was timed. docs/benchmarks.md says how each figure comes about.
 */
import { stat } from "node:fs/promises";
import { cpus, loadavg } from "node:os";
import { fileURLToPath } from "node:url";
import { SetupError } from "../setup/exec.js";
import { ChildContender, type ChildOptions } from "./child.js";
import { measureKl } from "./kl.js";
import { type FlashAttention, LlamaCpp } from "./llamaCpp.js";
import { installNodeLlama, nodeLlamaName } from "./nodeLlama.js";
import { buildLlamaCpp, compile, llamaCpp, must } from "./peers.js";
import { describeSpeed, type Speed } from "./speed.js";
import { type Contender, median, workload } from "./workload.js";

export interface EngineBenchOptions {
  model: string;
  threads: number;
  quick: boolean;
  say: (line: string) => void;
}

const textFile = fileURLToPath(new URL("../../test/engine/fixtures/persuasion.txt", import.meta.url));
/** Windows of the text whose KL `--quick` measures. */
const quickWindows = 4;
const rounds = { quick: 2, full: 5 };
/** Above this, something else runs, and figures are not to be quoted. */
const quietLoadMax = 0.5;

/** @returns all figures, for `--json`. */
export async function benchEngine({ model, threads, quick, say }: EngineBenchOptions): Promise<object> {
  await buildLlamaCpp(say);
  const bandwidthProgram = await compile("bandwidth", []);
  const readBandwidth = async (): Promise<number> => Number(await must(bandwidthProgram, [String(threads)]));
  const load = loadavg()[0] as number;
  const machine = { cpu: cpus()[0]?.model.trim() ?? "unknown", cores: cpus().length, load, threads };
  say(`machine: ${machine.cpu}, ${machine.cores} cores, load ${load.toFixed(2)} at the start, ${threads} threads`);
  if (load > quietLoadMax) say(`the load is over ${quietLoadMax}: something else runs here, and these figures are not to be quoted`);
  const bandwidths = [await readBandwidth()];

  const { contenders, missing } = await startContenders({ model, threads, textFile }, say);
  let speeds: Speed[];
  try {
    for (const { name, about } of contenders) for (const line of about) say(`${name}: ${line}`);
    speeds = await takeTurns(contenders, quick ? rounds.quick : rounds.full, say);
  } finally {
    for (const contender of contenders) await contender.close();
  }
  bandwidths.push(await readBandwidth());
  const bandwidth = Math.max(...bandwidths);
  const weightBytes = contenders.find((contender) => contender instanceof LlamaCpp)?.weightBytes || (await stat(model)).size;
  say(`\nmemory reads: ${(bandwidth / 1e9).toFixed(1)} GB/s; a decode step reads ${(weightBytes / 1e6).toFixed(1)} MB of weights`);
  say(describeSpeed(speeds, bandwidth, weightBytes));
  for (const [name, why] of missing) say(`${name}: not measured, ${why}`);

  const timed = bestFlashAttention(speeds);
  const options = { path: model, threads, contextTokens: workload.contextTokens };
  const scores = await measureKl(options, timed, textFile, quick ? quickWindows : undefined, say);
  return { machine, model, bandwidth, weightBytes, workload, speeds, missing: Object.fromEntries(missing), scores };
}

async function startContenders(options: ChildOptions, say: (line: string) => void) {
  const { model, threads } = options;
  const contenders: Contender[] = [await ChildContender.start("millrace", "childMillrace.ts", options)];
  const missing: [name: string, why: string][] = [];
  for (const flashAttention of ["off", "on"] as const) contenders.push(new LlamaCpp(model, threads, flashAttention));
  say(llamaCpp.version);
  try {
    await installNodeLlama(say);
    contenders.push(await ChildContender.start(nodeLlamaName, "childNodeLlama.ts", options));
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    missing.push([nodeLlamaName, error.message]);
  }
  return { contenders, missing };
}

/** Each measurement is done by all in turn before the next begins; who goes first changes with the round. */
async function takeTurns(contenders: Contender[], count: number, say: (line: string) => void): Promise<Speed[]> {
  const speeds = contenders.map(({ name }) => ({ name, prefill: [], decode: {}, whole: {}, peakBytes: 0 }) as Speed);
  for (let round = 0; round < count; round++) {
    const started = performance.now();
    const turns = contenders.map((_, index) => (index + round) % contenders.length);
    for (const index of turns) speeds[index]?.prefill.push(await (contenders[index] as Contender).prefill());
    for (const batch of workload.batches)
      for (const index of turns) {
        const rates = await (contenders[index] as Contender).decode(batch);
        const speed = speeds[index] as Speed;
        speed.decode[batch] = [...(speed.decode[batch] ?? []), rates.decode];
        speed.whole[batch] = [...(speed.whole[batch] ?? []), rates.whole];
      }
    say(`round ${round + 1} of ${count}: ${((performance.now() - started) / 1_000).toFixed(0)} s`);
  }
  for (const [index, contender] of contenders.entries()) (speeds[index] as Speed).peakBytes = contender.peakBytes();
  return speeds;
}

/** The setting that decoded fastest at batch 1, and that of the prefill where it is another. */
function bestFlashAttention(speeds: Speed[]): FlashAttention[] {
  const [off, on] = (["off", "on"] as const).map((setting) => speeds.find(({ name }) => name.endsWith(`attention ${setting}`)));
  if (!off || !on) return ["off"];
  const better = (of: (speed: Speed) => number[]): FlashAttention => (median(of(on)) > median(of(off)) ? "on" : "off");
  return [...new Set([better(({ prefill }) => prefill), ...workload.batches.map((batch) => better(({ decode }) => decode[batch] ?? [0]))])];
}
