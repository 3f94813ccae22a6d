/** (b): as many sockets as an origin takes, each with a slow stream: what one of them weighs in memory, and whether any is lost. */
import { setTimeout as passed } from "node:timers/promises";
import { median } from "../workload.js";
import { openStreams } from "./load.js";
import type { LoadClient, LoadReport } from "./loadClient.js";
import { cpuSeconds, residentBytes } from "./processes.js";
import { Path } from "./servers.js";
import { crowd, type Lengths } from "./settings.js";

export interface CrowdResult {
  sockets: number;
  tokensPerSecond: number;
  /** Resident in the origin after traffic, with the fewer and with all sockets. */
  residentBytes: [few: number, all: number];
  /** The slope between them. */
  bytesAStream: number;
  lost: number;
  losses: Record<string, number>;
  holes: number;
  /** Of what was due in the last seconds, the part that came. */
  delivered: number;
  /** The worse of the two clients'. */
  p50Ms: number;
  p99Ms: number;
  originBusy: number;
}

/** Memory is read so often, and its median taken. */
const readingMs = 250;

export async function measureCrowd({ memoryS }: Lengths): Promise<CrowdResult> {
  const [few, all] = crowd.sockets;
  const { tokensPerSecond } = crowd;
  const path = await Path.start({ tokensPerSecond, slots: all });
  const clients: LoadClient[] = [];
  try {
    const resident: number[] = [];
    let seen: Seen = { reports: [], originBusy: 0, residentBytes: 0 };
    for (const more of [few, all - few]) {
      clients.push(await openStreams(path, more));
      seen = await watch(path, clients, memoryS);
      resident.push(seen.residentBytes);
    }
    const [fewBytes = 0, allBytes = 0] = resident;
    const sum = (of: (report: LoadReport) => number): number => seen.reports.reduce((total, report) => total + of(report), 0);
    const losses = seen.reports.flatMap((report) => [...Object.entries(report.losses), ...Object.entries(report.refusals)]);
    return {
      ...{ sockets: all, tokensPerSecond, residentBytes: [fewBytes, allBytes], bytesAStream: (allBytes - fewBytes) / (all - few) },
      ...{ lost: sum(({ lost }) => lost) + all - sum(({ running }) => running), losses: Object.fromEntries(losses) },
      ...{ holes: sum(({ holes, unstamped }) => holes + unstamped), originBusy: seen.originBusy },
      delivered: sum(({ tokens, seconds }) => tokens / seconds) / (all * tokensPerSecond),
      p50Ms: Math.max(...seen.reports.map(({ latencyMs }) => latencyMs.p50)),
      p99Ms: Math.max(...seen.reports.map(({ latencyMs }) => latencyMs.p99)),
    };
  } finally {
    await Promise.all(clients.map((client) => client.quit()));
    await path.stop();
  }
}

interface Seen {
  reports: LoadReport[];
  originBusy: number;
  residentBytes: number;
}

/** Memory is that of the second half: what the opening left behind may go first. */
async function watch({ originPid }: Path, clients: readonly LoadClient[], seconds: number): Promise<Seen> {
  const cpuBefore = cpuSeconds(originPid);
  const readings: number[] = [];
  for (const client of clients) client.measure();
  for (let ms = 0; ms < 1_000 * seconds; ms += readingMs) {
    await passed(readingMs);
    if (2 * ms >= 1_000 * seconds) readings.push(residentBytes(originPid));
  }
  const reports = await Promise.all(clients.map((client) => client.report()));
  const originBusy = (cpuSeconds(originPid) - cpuBefore) / (reports[0] as LoadReport).seconds;
  return { reports, originBusy, residentBytes: median(readings) };
}

export function describeCrowd({ residentBytes: [few, all], ...seen }: CrowdResult): string {
  const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(0);
  return (
    `${seen.sockets} sockets at ${seen.tokensPerSecond} tokens/s: ${mib(few)} MiB resident with ${crowd.sockets[0]}, ${mib(all)} MiB with all, ` +
    `${(seen.bytesAStream / 1_024).toFixed(1)} KiB a stream; ${seen.lost} lost, ${seen.holes} holes, ${(100 * seen.delivered).toFixed(1)}% came, ` +
    `p50 ${seen.p50Ms.toFixed(2)} ms, p99 ${seen.p99Ms.toFixed(2)} ms; the origin is ${(100 * seen.originBusy).toFixed(0)}% busy` +
    (seen.lost > 0 ? ` (${JSON.stringify(seen.losses)})` : "")
  );
}
