/**
 * `npm run test:chaos`: answers under disturbance. Five hundred of the simulated inference, whose every token depends on all before it,
 * while connections are delayed, cut, half-closed, stalled and reset at seeded random moments on both sides of the edge, origins and the
 * edge are killed, and origins are rolled; then twenty of the native engine with two kills. Each answer must be what it would have been.
 */
import { parseArgs } from "node:util";
import { runNative } from "./chaos/native.js";
import { runStorm } from "./chaos/storm.js";
import type { Path, Tally } from "./chaos/tally.js";
import { runAsCommand } from "./setup/command.js";
import { SetupError } from "./setup/exec.js";

const usage = "npm run test:chaos -- [--seed N] [--quick] [--part storm|native]";
const shapes = {
  full: { answers: 500, riders: 40, answerTokens: 400, tokensPerSecond: 100, disturbancesPerSecond: 60, deathEveryMs: 4_000 },
  quick: { answers: 60, riders: 20, answerTokens: 200, tokensPerSecond: 100, disturbancesPerSecond: 30, deathEveryMs: 3_000 },
};
const disturbancesMin = 3_000;
const pathMin = 20;
/** What a run has to have gone through so often. */
const required: readonly Path[] = ["replay", "misroute", "gone", "restart", "hand-off", "park"];

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { seed: { type: "string", default: "1" }, quick: { type: "boolean", default: false }, part: { type: "string" } },
  });
  const { quick, part } = values;
  const seed = Number(values.seed);
  if (!Number.isSafeInteger(seed)) throw new SetupError(`--seed is ${values.seed}, not an integer\n${usage}`);
  if (part !== undefined && part !== "storm" && part !== "native") throw new SetupError(`--part is ${JSON.stringify(part)}\n${usage}`);
  const say = (line: string): void => console.log(line);
  if (part !== "native") {
    const tally = await runStorm({ seed, ...shapes[quick ? "quick" : "full"], say });
    say(tally.describe());
    report([...tally.wrongs, ...(quick ? [] : shortfalls(tally))], say);
  }
  if (part !== "storm" && !quick) report(await runNative({ seed, say }), say);
}

function report(wrong: readonly string[], say: (line: string) => void): void {
  for (const sentence of wrong) say(`wrong: ${sentence}`);
  if (wrong.length > 0) process.exitCode = 1;
}

/** A run that was not disturbed enough shows nothing. */
function shortfalls(tally: Tally): string[] {
  const short = required
    .filter((path) => tally.of(path) < pathMin)
    .map((path) => `${path} was taken ${tally.of(path)} times, not ${pathMin}`);
  if (tally.disturbances < disturbancesMin) short.push(`there were ${tally.disturbances} disturbances, not ${disturbancesMin}`);
  return short;
}

await runAsCommand(import.meta.url, main);
