/** Where the origin's time goes under (a)'s load: V8's CPU profile of a whole run, of which the window's samples are counted. */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as passed } from "node:timers/promises";
import { table } from "../../eval/describe.js";
import { openStreams, window } from "./load.js";
import type { LoadClient } from "./loadClient.js";
import { Path } from "./servers.js";
import { latency, profile, running } from "./settings.js";

/** As `node --cpu-prof` writes it; times are microseconds of the monotonic clock. */
export interface CpuProfile {
  startTime: number;
  nodes: { id: number; callFrame: { functionName: string; url: string; lineNumber: number } }[];
  /** Ids of nodes, and how long after the sample before it each was taken. */
  samples: number[];
  timeDeltas: number[];
}

/** One function's, of the time in which there was anything to do. */
export interface SelfTime {
  name: string;
  /** The file, or what stands for one. */
  where: string;
  share: number;
}

export interface ProfileResult {
  streams: number;
  tokensPerSecond: number;
  /** Part of the window in which the origin's main thread had something to do. */
  busy: number;
  top: SelfTime[];
}

/** @param streams as many as (a) found. */
export async function measureProfile(streams: number, seconds: number): Promise<ProfileResult> {
  const folder = mkdtempSync(join(tmpdir(), "millrace-profile-"));
  const nodeFlags = ["--cpu-prof", "--cpu-prof-dir", folder, "--cpu-prof-interval", String(profile.everyUs)];
  const path = await Path.start({ tokensPerSecond: latency.tokensPerSecond, slots: streams, nodeFlags });
  let client: LoadClient | undefined;
  try {
    client = await openStreams(path, streams);
    await passed(1_000 * running.warmUpS);
    const fromUs = nowUs();
    await window(client, path, seconds);
    const toUs = nowUs();
    await client.quit();
    await path.stop(true);
    const [file] = readdirSync(folder).filter((name) => name.endsWith(".cpuprofile"));
    const whole = JSON.parse(readFileSync(join(folder, file ?? ""), "utf8")) as CpuProfile;
    return { streams, tokensPerSecond: latency.tokensPerSecond, ...selfTimes(whole, fromUs, toUs) };
  } finally {
    await client?.quit();
    await path.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Functions by the time spent in themselves between two moments, the most first. */
export function selfTimes(
  { startTime, nodes, samples, timeDeltas }: CpuProfile,
  fromUs: number,
  toUs: number,
): Pick<ProfileResult, "busy" | "top"> {
  const frames = new Map(nodes.map(({ id, callFrame }) => [id, callFrame]));
  const spent = new Map<string, number>();
  let [atUs, idleUs, allUs] = [startTime, 0, 0];
  for (const [index, id] of samples.entries()) {
    const us = timeDeltas[index] ?? 0;
    atUs += us;
    if (atUs < fromUs || atUs > toUs) continue;
    const { functionName = "", url = "", lineNumber = 0 } = frames.get(id) ?? {};
    allUs += us;
    if (functionName === "(idle)") idleUs += us;
    else add(spent, `${nameOf(functionName, lineNumber)}\n${whereOf(functionName, url)}`, us);
  }
  const busyUs = allUs - idleUs;
  const sorted = [...spent].sort(([, a], [, b]) => b - a);
  const top = sorted.map(([key, us]) => {
    const [name = "", where = ""] = key.split("\n");
    return { name, where, share: us / busyUs };
  });
  return { busy: busyUs / allUs, top };
}

function nameOf(functionName: string, lineNumber: number): string {
  return functionName === "" ? `(line ${lineNumber + 1})` : functionName;
}

/** The path from the repository's root; V8's own words for what is no function's. */
function whereOf(functionName: string, url: string): string {
  if (functionName === "(program)") return "native code: system calls, uWebSockets.js, V8's runtime";
  if (functionName === "(garbage collector)") return "V8";
  if (url === "") return "native code";
  const [, inRepository] = /\/((?:origin|shared|engine|node_modules)\/[^?]*)/.exec(url) ?? [];
  return inRepository ?? url;
}

function add(counts: Map<string, number>, key: string, more: number): void {
  counts.set(key, (counts.get(key) ?? 0) + more);
}

function nowUs(): number {
  return Number(process.hrtime.bigint()) / 1_000;
}

export function describeProfile({ top }: ProfileResult): string {
  const rows = top.slice(0, profile.rows).map(({ name, where, share }) => [name, `${(100 * share).toFixed(1)}%`, where]);
  const rest = top.slice(profile.rows).reduce((sum, { share }) => sum + share, 0);
  return table(["function", "of the busy time", "where"], [...rows, ["all others", `${(100 * rest).toFixed(1)}%`, ""]]);
}
