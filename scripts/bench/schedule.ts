/**
 * `npm run bench -- schedule`: what the engine's scheduler keeps of its promises, and what they cost, on a simulated machine
 * (engine/bench/machine.h: 70B in FP8 on two H200s) under a load of a public trace's shape (engine/bench/trace.h).
 *
 * A response is good if its first token and at least 99% of its tokens were on time by its class's deadlines; goodput is good responses per
 * second. The policy is not told step times, answer lengths, or that the machine slows down half-way.
 */
import { serviceClasses } from "../../shared/classes.js";
import { table } from "../eval/describe.js";
import { runEngineProgram } from "./engineProgram.js";

export interface ScheduleBenchOptions {
  quick: boolean;
  say: (line: string) => void;
}

/** One line of the program's output; triples are of voice, chat and batch. */
interface Run {
  policy: string;
  /** Offered, over what the undisturbed machine finishes when no deadline counts. */
  load: number;
  rate: number;
  seed: number;
  offered: number;
  good: number;
  goodput: number;
  refused: number;
  queued: number;
  oracle: number;
  accepted: [number, number, number];
  goodOf: [number, number, number];
}

const lengths = { quick: { seconds: 200, runs: 1 }, full: { seconds: 600, runs: 3 } };
const bars = { keptAtThreeTimes: 0.95, voiceGood: 0.99 };
const policies = {
  ours: "ours",
  "no-admission": "ours, all admitted",
  "first-come-512": "first come, 512",
  "first-come-2048": "first come, 2,048",
};
/** Here a voice or chat request that cannot be promised its deadlines goes elsewhere at once; batch waits up to a minute. */
const waitMs = { voice: 0, chat: 0, batch: 60_000 };

/** @returns all figures, for `--json`. */
export async function benchSchedule({ quick, say }: ScheduleBenchOptions): Promise<object> {
  const { seconds, runs } = quick ? lengths.quick : lengths.full;
  const terms = Object.entries(serviceClasses).flatMap(([name, { ttftMs, itlMs }]) => [ttftMs, itlMs, waitMs[name as keyof typeof waitMs]]);
  const lines = runEngineProgram("bench_schedule", [seconds, runs, ...terms].map(String));
  const results = lines.map((line) => JSON.parse(line) as Run);
  const capacity = (results[0] as Run).rate / (results[0] as Run).load;
  say(`simulated: 70B FP8 on 2 x H200, ${capacity.toFixed(2)} requests/s at capacity; ${runs} x ${seconds} s a load`);
  say("disturbed: 8% noise, a stall of 20 ms every 2 s, 20% slower from half-time on\n");
  const loads = [...new Set(results.map(({ load }) => load))];
  const rows = loads.flatMap((load) =>
    Object.entries(policies).map(([policy, title]) => {
      const sum = add(results.filter((each) => each.load === load && each.policy === policy));
      return [
        `${load}`,
        title,
        (sum.good / seconds / runs).toFixed(2),
        percent(sum.good, sum.oracle * seconds),
        percent(sum.refused, sum.offered),
        ...sum.goodOf.map((good, index) => percent(good, sum.accepted[index] as number)),
      ];
    }),
  );
  say(table(["load", "policy", "good/s", "of oracle", "refused", "voice kept", "chat kept", "batch kept"], rows));
  const verdict = judge(results, loads);
  say(
    `\nat 3 times capacity ours keeps ${(100 * verdict.keptAtThreeTimes).toFixed(1)}% of its peak; the bar: ${100 * bars.keptAtThreeTimes}%`,
  );
  say(
    `of accepted voice streams ${(100 * verdict.voiceGood).toFixed(2)}% are good, over all loads; at the worst load ${(100 * verdict.voiceGoodMin).toFixed(2)}%; the bar: ${100 * bars.voiceGood}%`,
  );
  return { seconds, runs, capacity, bars, ...verdict, results };
}

interface Verdict {
  keptAtThreeTimes: number;
  voiceGood: number;
  voiceGoodMin: number;
}

function judge(results: Run[], loads: number[]): Verdict {
  const ours = loads.map((load) => add(results.filter((each) => each.policy === "ours" && each.load === load)));
  const goodputs = ours.map(({ good }) => good);
  const voice = ours.map(({ goodOf, accepted }) => goodOf[0] / accepted[0]);
  const all = add(results.filter(({ policy }) => policy === "ours"));
  return {
    keptAtThreeTimes: (goodputs.at(-1) as number) / Math.max(...goodputs),
    voiceGood: all.goodOf[0] / all.accepted[0],
    voiceGoodMin: Math.min(...voice),
  };
}

type Sum = Pick<Run, "offered" | "good" | "refused" | "oracle" | "accepted" | "goodOf">;

function add(runs: Run[]): Sum {
  const sum: Sum = { offered: 0, good: 0, refused: 0, oracle: 0, accepted: [0, 0, 0], goodOf: [0, 0, 0] };
  for (const each of runs) {
    for (const name of ["offered", "good", "refused", "oracle"] as const) sum[name] += each[name];
    for (const name of ["accepted", "goodOf"] as const) for (const index of [0, 1, 2] as const) sum[name][index] += each[name][index];
  }
  return sum;
}

const percent = (part: number, whole: number): string => (whole === 0 ? "-" : `${((100 * part) / whole).toFixed(1)}%`);
