/**
 * (f): what readers that stop reading cost the others and the origin. Their own buffers are small, but the origin's kernel holds some megabytes for
 * each, so they have many streams; once it holds no more they are measured, and then they read again and have everything.
 */
import { setTimeout as passed } from "node:timers/promises";
import { SetupError } from "../../setup/exec.js";
import { median } from "../workload.js";
import { openStreams, startMessage } from "./load.js";
import { LoadClient, type LoadReport } from "./loadClient.js";
import { residentBytes } from "./processes.js";
import { Path } from "./servers.js";
import { type Lengths, running, slowReaders } from "./settings.js";

export interface SlowReadersResult {
  /** Sockets, and streams on each, of those who stop; those of the others have one. */
  stopped: number;
  streamsEach: number;
  others: number;
  /** The others' p99 while all read, and while some do not; medians of the rounds, and of the rounds' ratios. */
  p99Ms: [reading: number, stopped: number];
  ratios: number[];
  /** What the origin's memory grew by in all the time without reading, and how much text it had to keep for later. */
  grownBytes: number;
  keptBytes: number;
  /** Of all, at the end: lost sockets, holes, streams that do not run. */
  lost: number;
  holes: number;
  missing: number;
}

/** One round, of servers of its own. */
interface Round {
  reading: LoadReport;
  stopped: LoadReport;
  grownBytes: number;
  keptBytes: number;
  /** Of both clients, at the end. */
  ends: LoadReport[];
}

export async function measureSlowReaders({ windowS, cpuRounds }: Lengths): Promise<SlowReadersResult> {
  const { stopped, streamsEach, others } = slowReaders;
  const rounds: Round[] = [];
  for (let round = 0; round < cpuRounds; round++) rounds.push(await measureOnce(windowS / 2));
  const most = (of: (round: Round) => number): number => Math.max(...rounds.map(of));
  const sum = (of: (end: LoadReport) => number): number => rounds.flatMap(({ ends }) => ends).reduce((total, end) => total + of(end), 0);
  return {
    ...{ stopped, streamsEach, others },
    p99Ms: [median(rounds.map(({ reading }) => reading.latencyMs.p99)), median(rounds.map((round) => round.stopped.latencyMs.p99))],
    ratios: rounds.map((round) => round.stopped.latencyMs.p99 / round.reading.latencyMs.p99),
    ...{ grownBytes: most((round) => round.grownBytes), keptBytes: most((round) => round.keptBytes) },
    ...{ lost: sum(({ lost }) => lost), holes: sum(({ holes, unstamped }) => holes + unstamped) },
    missing: rounds.length * (others + stopped * streamsEach) - sum((end) => end.running),
  };
}

async function measureOnce(seconds: number): Promise<Round> {
  const { stopped, streamsEach, others, tokensPerSecond } = slowReaders;
  const path = await Path.start({ tokensPerSecond, slots: others + stopped * streamsEach });
  const clients: LoadClient[] = [];
  try {
    const other = await openStreams(path, others, { class: "voice" }, await path.assertionHeads(others, "voice"));
    clients.push(other);
    const slow = await LoadClient.start({
      ...{
        port: path.port,
        path: "/v1/stream",
        speech: "millrace",
        startsPerSecond: running.startsPerSecond,
        deadlineMs: running.answerMsMax,
      },
      starts: Array.from({ length: streamsEach }, (_, index) => startMessage(index + 1, { class: "voice" })),
      ...{ heads: await path.assertionHeads(stopped, "voice"), hasSmallBuffers: true },
    });
    clients.push(slow);
    await slow.answered;
    await passed(1_000 * running.warmUpS);
    slow.measure();
    const reading = await report(other, seconds);
    const { bytes, tokens } = await slow.report();
    const before = residentBytes(path.originPid);
    const stoppedMs = performance.now();
    slow.stopReading();
    await allFull(path, stopped);
    const whileStopped = await report(other, seconds);
    const grownBytes = residentBytes(path.originPid) - before;
    const tokensSince = (): number => (tokensPerSecond * stopped * streamsEach * (performance.now() - stoppedMs)) / 1_000;
    const keptBytes = tokensSince() * (bytes / tokens);
    slow.measure();
    slow.readOn();
    await passed(1_000 * running.warmUpS);
    const part = (await slow.report()).tokens / tokensSince();
    if (part < running.deliveredMin)
      throw new SetupError(`${running.warmUpS} s after reading began again ${(100 * part).toFixed(1)}% of the tokens had come`);
    const ends = await Promise.all(clients.map((client) => client.report()));
    return { reading, stopped: whileStopped, grownBytes, keptBytes, ends };
  } finally {
    await Promise.all(clients.map((client) => client.quit()));
    await path.stop();
  }
}

async function report(client: LoadClient, seconds: number): Promise<LoadReport> {
  client.measure();
  await passed(1_000 * seconds);
  return client.report();
}

/** Waits until the origin finds so many sockets full. */
async function allFull(path: Path, sockets: number): Promise<void> {
  const untilMs = performance.now() + slowReaders.fullMsMax;
  let full = 0;
  while (performance.now() < untilMs) {
    const body = await (await fetch(`http://127.0.0.1:${path.originPort}/metrics`)).text();
    full = Number(/^millrace_sockets_backpressured (\d+)/m.exec(body)?.[1]);
    if (full >= sockets) return;
    await passed(slowReaders.everyMs);
  }
  throw new SetupError(`${sockets} readers stopped, but only ${full} of their sockets were full ${slowReaders.fullMsMax} ms later`);
}

export function describeSlowReaders({
  stopped,
  streamsEach,
  others,
  p99Ms,
  ratios,
  grownBytes,
  keptBytes,
  ...ends
}: SlowReadersResult): string {
  const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(1);
  return (
    `${stopped} readers of ${streamsEach} streams each stop: p99 of ${others} others ${p99Ms[1].toFixed(2)} ms, ${p99Ms[0].toFixed(2)} while all read ` +
    `(${median(ratios).toFixed(2)} times [${Math.min(...ratios).toFixed(2)}-${Math.max(...ratios).toFixed(2)}]); the origin grew by ${mib(grownBytes)} MiB, ` +
    `${mib(keptBytes)} MiB of frames waited for them; ${ends.lost} sockets lost, ${ends.holes} holes, ${ends.missing} streams missing at the end`
  );
}
