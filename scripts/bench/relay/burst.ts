/** (c): many STARTs at once over open sockets. Each is to have its first token, or a truthful refusal, by its deadline. */
import { serviceClasses } from "../../../shared/classes.js";
import { startMessage } from "./load.js";
import { LoadClient, type Quantiles } from "./loadClient.js";
import { Path } from "./servers.js";
import { burst } from "./settings.js";

export interface BurstResult {
  starts: number;
  /** STARTs with a first token, and those that were refused, by code. */
  answered: number;
  refusals: Record<string, number>;
  /** After their deadline, with one or the other; with neither. */
  late: number;
  refusedLate: number;
  unanswered: number;
  lost: number;
  /** From when each START was due. */
  firstTokenMs: Quantiles;
  refusalMs: Quantiles;
}

/** What an origin that cannot take more may say. */
const truthful = ["overloaded"];

export async function measureBurst(): Promise<BurstResult> {
  const { sockets, starts, withinS, tokensPerSecond, answerTokens } = burst;
  const path = await Path.start({ tokensPerSecond, slots: starts });
  const messages = Array.from({ length: starts / sockets }, (_, index) => startMessage(index + 1, { maxTokens: answerTokens }));
  let client: LoadClient | undefined;
  try {
    client = await LoadClient.start({
      ...{ port: path.port, path: "/v1/stream", speech: "millrace", startsPerSecond: starts / withinS },
      ...{ deadlineMs: serviceClasses.chat.ttftMs, starts: messages, heads: await path.heads(sockets) },
    });
    await client.opened;
    // One that is never answered is counted below.
    await client.answered.catch(() => {});
    const seen = await client.report();
    const { refusals, late, refusedLate, unanswered, lost, firstTokenMs, refusalMs } = seen;
    return { starts: seen.started, answered: firstTokenMs.count, refusals, late, refusedLate, unanswered, lost, firstTokenMs, refusalMs };
  } finally {
    await client?.quit();
    await path.stop();
  }
}

/** Every START was sent, and answered in its time. */
export function isBurstGood({ starts, late, refusedLate, unanswered, lost, refusals }: BurstResult): boolean {
  return (
    starts === burst.starts &&
    late + refusedLate + unanswered + lost === 0 &&
    Object.keys(refusals).every((code) => truthful.includes(code))
  );
}

export function describeBurst({
  starts,
  answered,
  refusals,
  late,
  refusedLate,
  unanswered,
  lost,
  firstTokenMs,
  refusalMs,
}: BurstResult): string {
  const refused = Object.entries(refusals).map(([code, count]) => `${count} ${code}`);
  return (
    `${starts} STARTs over ${burst.sockets} sockets in ${burst.withinS} s: ${answered} had a first token (p50 ${firstTokenMs.p50.toFixed(0)} ms, ` +
    `p99 ${firstTokenMs.p99.toFixed(0)} ms, max ${firstTokenMs.max.toFixed(0)} ms), refused: ${refused.join(", ") || "none"} ` +
    `(p99 ${refusalMs.p99.toFixed(0)} ms, max ${refusalMs.max.toFixed(0)} ms); late ${late}, refused late ${refusedLate}, without an answer ${unanswered}, sockets lost ${lost}`
  );
}
