/** What a process has used, as Linux keeps account of it. */
import { readFileSync } from "node:fs";
import { SetupError } from "../../setup/exec.js";

/** A tick of /proc's clock: 10 ms on every machine that Node.js runs on. */
const ticksPerSecond = 100;

export interface CpuTimes {
  userS: number;
  /** In the kernel: on a loopback that is the receiver's half of TCP too. */
  systemS: number;
}

/** Of all its threads so far. @throws SetupError where it is gone. */
export function cpuTimes(pid: number): CpuTimes {
  const stat = read(pid, "stat");
  // The name before it, in brackets, may have spaces in it.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return { userS: Number(fields[11]) / ticksPerSecond, systemS: Number(fields[12]) / ticksPerSecond };
}

/** Both together. */
export function cpuSeconds(pid: number): number {
  const { userS, systemS } = cpuTimes(pid);
  return userS + systemS;
}

/** What it has in memory now. @throws SetupError where it is gone. */
export function residentBytes(pid: number): number {
  const [, kilobytes] = /^VmRSS:\s+(\d+) kB$/m.exec(read(pid, "status")) ?? [];
  return 1_024 * Number(kilobytes);
}

function read(pid: number, name: string): string {
  try {
    return readFileSync(`/proc/${pid}/${name}`, "utf8");
  } catch {
    throw new SetupError(`process ${pid} has ended under load`);
  }
}
