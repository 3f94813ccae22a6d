/** What a process has used, as Linux keeps account of it. */
import { readFileSync } from "node:fs";

/** A tick of /proc's clock: 10 ms on every machine that Node.js runs on. */
const ticksPerSecond = 100;

export interface CpuTimes {
  userS: number;
  /** In the kernel: on a loopback that is the receiver's half of TCP too. */
  systemS: number;
}

/** Of all its threads so far. */
export function cpuTimes(pid: number): CpuTimes {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  // The name before it, in brackets, may have spaces in it.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return { userS: Number(fields[11]) / ticksPerSecond, systemS: Number(fields[12]) / ticksPerSecond };
}

/** Both together. */
export function cpuSeconds(pid: number): number {
  const { userS, systemS } = cpuTimes(pid);
  return userS + systemS;
}

/** What it has in memory now. */
export function residentBytes(pid: number): number {
  const [, kilobytes] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
  return 1_024 * Number(kilobytes);
}
