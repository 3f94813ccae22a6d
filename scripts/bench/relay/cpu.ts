/**
 * (d): what a token costs the server's process, beside `ws` with OpenAI-style JSON and Socket.IO, at equal sockets, rates and messages: one
 * message a token, which for us is class voice. What coalescing saves is a contender of its own.
 */
import { setTimeout as passed } from "node:timers/promises";
import { type ClassName, serviceClasses } from "../../../shared/classes.js";
import { table } from "../../eval/describe.js";
import { SetupError } from "../../setup/exec.js";
import { median } from "../workload.js";
import { startMessage } from "./load.js";
import { LoadClient, type LoadPlan, type LoadReport } from "./loadClient.js";
import { cpuTimes } from "./processes.js";
import { Path, Peer } from "./servers.js";
import { cpu, type Lengths, running } from "./settings.js";
import { installSocketIo, socketIoName } from "./socketIo.js";

interface Serving {
  pid: number;
  plan: Pick<LoadPlan, "port" | "path" | "speech" | "starts" | "heads">;
  stop(): Promise<void>;
}

interface Contender {
  name: string;
  /** Several tokens a message: no peer for the others. */
  coalesces: boolean;
  serve(sockets: number): Promise<Serving>;
}

const ours = (service: ClassName, name: string, coalesces: boolean): Contender => ({
  name,
  coalesces,
  serve: async (sockets) => {
    const path = await Path.start({ tokensPerSecond: cpu.tokensPerSecond, slots: sockets });
    const starts = [startMessage(1, { class: service })];
    const heads = await path.heads(sockets, "voice");
    const plan = { port: path.port, path: "/v1/stream", speech: "millrace" as const, starts, heads };
    return { pid: path.originPid, plan, stop: () => path.stop() };
  },
});

const peer = (name: string, script: string, wire: { path: string; speech: "json" | "socketio"; start: string }): Contender => ({
  name,
  coalesces: false,
  serve: async (sockets) => {
    const server = await Peer.start(script, [String(cpu.tokensPerSecond)]);
    const heads = Array.from({ length: sockets }, () => []);
    const plan = { port: server.port, path: wire.path, speech: wire.speech, starts: [Buffer.from(wire.start)], heads };
    return { pid: server.pid, plan, stop: () => server.stop() };
  },
});

const request = JSON.stringify({ model: "simulated", stream: true, messages: [{ role: "user", content: "How does a mill race?" }] });
const contenders: readonly Contender[] = [
  ours("voice", "millrace, a message a token", false),
  peer("ws, OpenAI-style JSON", "peerWs.ts", { path: "/", speech: "json", start: request }),
  peer(socketIoName, "peerSocketIo.ts", { path: "/socket.io/?EIO=4&transport=websocket", speech: "socketio", start: '42["start"]' }),
  ours("chat", "millrace, class chat: a message each 16 ms", true),
  ours("batch", "millrace, class batch: a message each 100 ms", true),
];

export interface CpuRow {
  name: string;
  /** Of the server's process; medians of the rounds. */
  cpuUsAToken: number;
  /** Of it, in the kernel. */
  systemUsAToken: number;
  tokensAMessage: number;
  bytesAToken: number;
  p99Ms: number;
  /** Part of one core. */
  busy: number;
  /** Its CPU time a token over that of ours with a message a token, by round. */
  ratios: number[];
}

export interface CpuResult {
  sockets: number;
  tokensPerSecond: number;
  rows: CpuRow[];
  /** The least of the peers' medians. */
  ratio: number;
}

interface Round {
  cpuUsAToken: number;
  systemUsAToken: number;
  busy: number;
  report: LoadReport;
}

export async function measureCpu({ cpuRounds, windowS }: Lengths, say: (line: string) => void): Promise<CpuResult> {
  await installSocketIo(say);
  const sockets = await bearable(say);
  const rounds: Round[][] = contenders.map(() => []);
  for (let round = 0; round < cpuRounds; round++) {
    // Who goes first changes with the round.
    for (let turn = 0; turn < contenders.length; turn++) {
      const index = (round + turn) % contenders.length;
      (rounds[index] as Round[]).push(await measureOnce(contenders[index] as Contender, sockets, windowS / 2));
    }
  }
  const rows = contenders.map(({ name }, index) => rowOf(name, rounds[index] as Round[], rounds[0] as Round[]));
  const peers = rows.filter((_, index) => index > 0 && !(contenders[index] as Contender).coalesces);
  return { sockets, tokensPerSecond: cpu.tokensPerSecond, rows, ratio: Math.min(...peers.map(({ ratios }) => median(ratios))) };
}

/** Fewer until no contender is busier than it may be: beyond that, messages gather and cost less. */
async function bearable(say: (line: string) => void): Promise<number> {
  for (let sockets: number = cpu.socketsMax; sockets >= 1; sockets = Math.floor(cpu.socketsFactor * sockets)) {
    const trials: Round[] = [];
    for (const contender of contenders.filter(({ coalesces }) => !coalesces))
      trials.push(await measureOnce(contender, sockets, cpu.trialS));
    const busiest = Math.max(...trials.map(({ busy }) => busy));
    if (busiest <= cpu.busyMax) return sockets;
    say(`  ${sockets} sockets keep one contender ${(100 * busiest).toFixed(0)}% busy: fewer`);
  }
  throw new SetupError(`not even one socket leaves all contenders under ${100 * cpu.busyMax}% of one core: something else runs here`);
}

async function measureOnce({ name, serve }: Contender, sockets: number, seconds: number): Promise<Round> {
  const { pid, plan, stop } = await serve(sockets);
  let client: LoadClient | undefined;
  try {
    const { startsPerSecond } = running;
    client = await LoadClient.start({ ...plan, startsPerSecond, deadlineMs: serviceClasses.voice.ttftMs });
    await client.answered;
    await passed(1_000 * running.warmUpS);
    const before = cpuTimes(pid);
    client.measure();
    await passed(1_000 * seconds);
    const report = await client.report();
    const after = cpuTimes(pid);
    const [userS, systemS] = [after.userS - before.userS, after.systemS - before.systemS];
    if (report.lost > 0 || report.holes + report.unstamped > 0)
      throw new SetupError(`${name} lost ${report.lost} sockets (${JSON.stringify(report.losses)}) and ${report.holes} tokens`);
    const usAToken = (seconds: number): number => (1e6 * seconds) / report.tokens;
    return { cpuUsAToken: usAToken(userS + systemS), systemUsAToken: usAToken(systemS), busy: (userS + systemS) / report.seconds, report };
  } finally {
    await client?.quit();
    await stop();
  }
}

function rowOf(name: string, rounds: readonly Round[], own: readonly Round[]): CpuRow {
  const middle = (of: (round: Round) => number): number => median(rounds.map(of));
  return {
    name,
    cpuUsAToken: middle((round) => round.cpuUsAToken),
    systemUsAToken: middle((round) => round.systemUsAToken),
    tokensAMessage: middle(({ report }) => report.tokens / report.frames),
    bytesAToken: middle(({ report }) => report.bytes / report.tokens),
    p99Ms: middle(({ report }) => report.latencyMs.p99),
    busy: middle((round) => round.busy),
    ratios: rounds.map((round, index) => round.cpuUsAToken / (own[index] as Round).cpuUsAToken),
  };
}

export function describeCpu({ rows }: CpuResult): string {
  const header = [
    "",
    "CPU a token, us",
    "in the kernel",
    "over ours, a message a token",
    "tokens a message",
    "bytes a token",
    "p99 ms",
    "of one core",
  ];
  return table(
    header,
    rows.map(({ name, cpuUsAToken, systemUsAToken, tokensAMessage, bytesAToken, p99Ms, busy, ratios }) => [
      name,
      cpuUsAToken.toFixed(1),
      systemUsAToken.toFixed(1),
      `${median(ratios).toFixed(2)} [${Math.min(...ratios).toFixed(2)}-${Math.max(...ratios).toFixed(2)}]`,
      tokensAMessage.toFixed(2),
      bytesAToken.toFixed(1),
      p99Ms.toFixed(2),
      `${(100 * busy).toFixed(0)}%`,
    ]),
  );
}
