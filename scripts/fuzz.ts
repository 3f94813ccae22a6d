/**
 * `npm run fuzz -- --seconds N`: any sequence of any frames leaves the origin alive, bounded and correct. Coverage guides it: a sequence
 * that runs a block of our code which none before it ran is kept and changed further. Sessions run over a socket that is none, with the
 * simulated inference; what is found is printed with the frames that show it.
 */
import { parseArgs } from "node:util";
import { Coverage } from "./fuzz/coverage.js";
import { type Frames, mutate, plausible } from "./fuzz/mutate.js";
import { FuzzTarget } from "./fuzz/target.js";
import { Random } from "./random.js";
import { runAsCommand } from "./setup/command.js";
import { SetupError } from "./setup/exec.js";

const usage = "npm run fuzz -- [--seconds N] [--seed N]";
const corpusMax = 4_096;
const sayEveryMs = 15_000;

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { seconds: { type: "string", default: "600" }, seed: { type: "string", default: "1" } } });
  const [seconds, seed] = [Number(values.seconds), Number(values.seed)];
  if (!(seconds > 0) || !Number.isSafeInteger(seed)) throw new SetupError(`--seconds or --seed is no number\n${usage}`);
  const random = new Random(seed);
  const coverage = new Coverage(/\/(origin|shared)\/[^?]*\.ts/);
  const target = new FuzzTarget();
  const corpus: Frames[] = [[]];
  const until = performance.now() + 1_000 * seconds;
  let [runs, saidMs] = [0, performance.now()];
  while (performance.now() < until) {
    const fresh = (): Uint8Array => plausible(random, target.known);
    const frames = mutate(random.pick(corpus), corpus, random, fresh);
    const wrong = await target.run(frames);
    runs++;
    if (wrong !== undefined) {
      console.log(`wrong after ${runs} runs: ${wrong}\nframes: ${frames.map((frame) => Buffer.from(frame).toString("hex")).join(" ")}`);
      process.exitCode = 1;
      break;
    }
    if (coverage.take() > 0 && corpus.length < corpusMax) corpus.push(frames);
    if (performance.now() - saidMs < sayEveryMs) continue;
    saidMs = performance.now();
    console.log(`${runs} runs, ${corpus.length} kept, ${coverage.count} blocks, ${target.describe()}`);
  }
  coverage.close();
  await target.close();
  console.log(
    `${runs} runs, ${corpus.length} kept, ${coverage.count} blocks: ${process.exitCode ? "something is wrong" : "nothing wrong"}`,
  );
}

await runAsCommand(import.meta.url, main);
