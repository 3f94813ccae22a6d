/** One load on one path: sockets, streams, a window, and what the processes used in it. */
import { setTimeout as passed } from "node:timers/promises";
import { serviceClasses } from "../../../shared/classes.js";
import { encode } from "../../../shared/codec.js";
import { Op, type StartOptions } from "../../../shared/protocol.js";
import { type Head, LoadClient, type LoadReport } from "./loadClient.js";
import { cpuSeconds } from "./processes.js";
import type { Path } from "./servers.js";
import { running } from "./settings.js";

/** A window's figures. Busy is the part of one core that a process used. */
export interface Window extends LoadReport {
  originBusy: number;
  edgeBusy: number | undefined;
  clientBusy: number;
}

/** A START by PROTOCOL.md. Nothing ends the answer before its tokens do. */
export function startMessage(stream: number, options: StartOptions = {}): Uint8Array {
  return encode([Op.START, stream, [["user", "How does a mill race?"]], { maxTokens: running.maxTokens, ignoreEos: true, ...options }]);
}

/** Opens the sockets, each with one stream, and waits until all of them have their first token. */
export async function openStreams(path: Path, sockets: number, options: StartOptions = {}, heads?: readonly Head[]): Promise<LoadClient> {
  const client = await LoadClient.start({
    ...{ port: path.port, path: "/v1/stream", speech: "millrace" as const, startsPerSecond: running.startsPerSecond },
    ...{ deadlineMs: serviceClasses.chat.ttftMs, starts: [startMessage(1, options)], heads: heads ?? (await path.heads(sockets)) },
  });
  try {
    await client.opened;
    await client.answered;
    return client;
  } catch (error) {
    await client.quit();
    throw error;
  }
}

/** What comes in the next seconds. */
export async function window(client: LoadClient, path: Path, seconds: number): Promise<Window> {
  const before = usage(path);
  client.measure();
  await passed(1_000 * seconds);
  const report = await client.report();
  const after = usage(path);
  const busy = (used: number): number => used / report.seconds;
  return {
    ...report,
    originBusy: busy(after.origin - before.origin),
    edgeBusy: path.edgePid === undefined ? undefined : busy(after.edge - before.edge),
    clientBusy: busy(report.clientCpuSeconds),
  };
}

function usage({ originPid, edgePid }: Path): { origin: number; edge: number } {
  return { origin: cpuSeconds(originPid), edge: edgePid === undefined ? 0 : cpuSeconds(edgePid) };
}

/** Of what was due in a window, the part that came. */
export function delivered({ tokens, seconds }: LoadReport, streams: number, tokensPerSecond: number): number {
  return tokens / (streams * tokensPerSecond * seconds);
}

/** Why a window is no measurement: a socket that is lost, a stream that does not run, a hole. Undefined where it is one. */
export function damage(report: LoadReport, streams: number): string | undefined {
  const { lost, losses, holes, unstamped, refusals } = report;
  if (lost > 0) return `${lost} of ${streams} sockets were lost (${JSON.stringify(losses)})`;
  if (report.running < streams) return `${streams - report.running} of ${streams} streams do not run (${JSON.stringify(refusals)})`;
  return holes + unstamped > 0 ? `${holes} frames do not follow, ${unstamped} tokens have no time` : undefined;
}
