/** Contenders take turns: each measurement is done by all before the next begins, and who goes first changes with the round. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import type { Speed } from "./speed.js";
import { type Contender, workload } from "./workload.js";

export async function takeTurns(contenders: Contender[], rounds: number, say: (line: string) => void): Promise<Speed[]> {
  const speeds = contenders.map(({ name }) => ({ name, prefill: [], decode: {}, whole: {}, peakBytes: 0 }) as Speed);
  for (let round = 0; round < rounds; round++) {
    const started = performance.now();
    for (const index of turns(contenders, round)) speeds[index]?.prefill.push(await (contenders[index] as Contender).prefill());
    for (const batch of workload.batches)
      for (const index of turns(contenders, round)) {
        const rates = await (contenders[index] as Contender).decode(batch);
        const speed = speeds[index] as Speed;
        speed.decode[batch] = [...(speed.decode[batch] ?? []), rates.decode];
        speed.whole[batch] = [...(speed.whole[batch] ?? []), rates.whole];
      }
    say(`round ${round + 1} of ${rounds}: ${((performance.now() - started) / 1_000).toFixed(0)} s`);
  }
  for (const [index, contender] of contenders.entries()) (speeds[index] as Speed).peakBytes = contender.peakBytes();
  return speeds;
}

/** Decoding at batch 1, tokens a second a round. */
export interface BusySpeed {
  name: string;
  quiet: number[];
  /** While another process wants a core to itself. */
  busy: number[];
}

export async function takeTurnsBusy(contenders: Contender[], rounds: number): Promise<BusySpeed[]> {
  const speeds: BusySpeed[] = contenders.map(({ name }) => ({ name, quiet: [], busy: [] }));
  const measure = async (round: number, kind: "quiet" | "busy"): Promise<void> => {
    for (const index of turns(contenders, round))
      (speeds[index] as BusySpeed)[kind].push((await (contenders[index] as Contender).decode(1)).decode);
  };
  for (let round = 0; round < rounds; round++) {
    await measure(round, "quiet");
    await besideSpinner(() => measure(round, "busy"));
  }
  return speeds;
}

/** Counts for as long as its parent lives, so that a benchmark that was ended leaves no core busy. */
const spin = "console.log(); const parent = process.ppid; while (process.ppid === parent) for (let i = 0; i < 1e7; i++);";

/** Runs `work` while a process of its own does nothing but count. */
async function besideSpinner(work: () => Promise<void>): Promise<void> {
  const spinner = spawn(process.execPath, ["-e", spin], { stdio: ["ignore", "pipe", "inherit"] });
  const ended = once(spinner, "exit");
  try {
    await once(spinner.stdout, "data");
    await work();
  } finally {
    spinner.kill("SIGKILL");
    await ended;
  }
}

function turns(contenders: Contender[], round: number): number[] {
  return contenders.map((_, index) => (index + round) % contenders.length);
}
