/** The load client, relay_client.cpp, as a child process: compiled on demand, told what to do, and asked what it saw. */
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { fileURLToPath } from "node:url";
import { SetupError } from "../../setup/exec.js";
import { compile, peersFolder } from "../peers.js";
import { running } from "./settings.js";

/** Header lines of one upgrade, beside those that every upgrade has. */
export type Head = readonly string[];

/** One stream of each socket by default; PROTOCOL.md's messages, or a peer's. */
export interface LoadPlan {
  port: number;
  path: string;
  speech: "millrace" | "json" | "socketio";
  /** Over all sockets. */
  startsPerSecond: number;
  /** By which a START is to be answered, where the server promises nothing else. */
  deadlineMs: number;
  /** The messages that each socket sends, one a stream: the streams' numbers count from 1. */
  starts: readonly Uint8Array[];
  /** Header lines of each socket's upgrade. */
  heads: readonly Head[];
  /** So small that a server finds a socket full soon after it is not read any more. */
  hasSmallBuffers?: boolean;
}

/** Milliseconds. */
export interface Quantiles {
  count: number;
  p50: number;
  p90: number;
  p99: number;
  p999: number;
  max: number;
}

export interface LoadReport {
  /** Since `measure`, as are tokens, frames, bytes, latencies and the client's own CPU time. */
  seconds: number;
  clientCpuSeconds: number;
  tokens: number;
  frames: number;
  /** Of the frames, with WebSocket's headers. */
  bytes: number;
  /** From when a token was due to when it was read. */
  latencyMs: Quantiles;
  /** Sockets that are open, and those that did not open or were closed. */
  open: number;
  lost: number;
  losses: Record<string, number>;
  /** Streams that have tokens coming. */
  running: number;
  /** Frames that do not follow what came before, and tokens that do not say when they were due. */
  holes: number;
  unstamped: number;
  /** ERRORs by code. */
  refusals: Record<string, number>;
  /** STARTs sent; those whose first token, or refusal, came after its deadline; those without either. */
  started: number;
  late: number;
  refusedLate: number;
  unanswered: number;
  /** From when the START was due. */
  firstTokenMs: Quantiles;
  refusalMs: Quantiles;
}

type Told = { event: "open"; open: number; lost: number } | { event: "answered" } | ({ event: "report" } & LoadReport);

/** Sockets, loads and windows of one client; what it holds ends with it, or with this process. */
export class LoadClient {
  /** Settles when each socket is open or lost. */
  readonly opened: Promise<{ open: number; lost: number }>;
  /** Settles when each stream has had its first token, was refused, or is lost. */
  readonly answered: Promise<void>;
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly #waiting = new Map<Told["event"], (told: Told) => void>();
  readonly #ended: Promise<never>;
  #said = "";

  private constructor(program: string, plan: LoadPlan) {
    this.#child = spawn(program, [], { stdio: ["pipe", "pipe", "pipe"] });
    // What it can no longer be told, it needs not know.
    this.#child.stdin.on("error", () => {});
    this.#child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#said += text;
    });
    this.#ended = new Promise((_resolve, reject) => {
      this.#child.on("close", () => reject(new SetupError(`the load client ended: ${this.#said || "it was told to, or killed"}`)));
    });
    this.#ended.catch(() => {});
    createInterface({ input: this.#child.stdout }).on("line", (line) => {
      const told = JSON.parse(line) as Told;
      this.#waiting.get(told.event)?.(told);
      this.#waiting.delete(told.event);
    });
    const startsMs = (1_000 * plan.starts.length * plan.heads.length) / plan.startsPerSecond;
    this.opened = this.#told("open", running.openMsMax);
    this.answered = this.#told("answered", running.openMsMax + startsMs + running.answerMsMax).then(() => {});
    for (const promise of [this.opened, this.answered]) promise.catch(() => {});
    this.#child.stdin.write(linesOf(plan));
  }

  /** @throws SetupError where it cannot be compiled. */
  static async start(plan: LoadPlan): Promise<LoadClient> {
    return new LoadClient(await compileClient(), plan);
  }

  /** Begins a window. */
  measure(): void {
    this.#child.stdin.write("measure\n");
  }

  /** From now on nothing is read; the sockets stay open. */
  stopReading(): void {
    this.#child.stdin.write("stop_reading\n");
  }

  readOn(): void {
    this.#child.stdin.write("read_on\n");
  }

  /** What came since `measure`. */
  report(): Promise<LoadReport> {
    const report = this.#told("report", running.reportMsMax);
    this.#child.stdin.write("report\n");
    return report;
  }

  /** Closes its sockets and ends. */
  async quit(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const closed = once(this.#child, "close");
    this.#child.stdin.end("quit\n");
    await closed;
  }

  #told<Event extends Told["event"]>(event: Event, msMax: number): Promise<Extract<Told, { event: Event }>> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const told = new Promise<Extract<Told, { event: Event }>>((resolve, reject) => {
      timer = setTimeout(() => reject(new SetupError(`the load client did not say "${event}" within ${msMax} ms`)), msMax);
      this.#waiting.set(event, (each) => resolve(each as Extract<Told, { event: Event }>));
    });
    return Promise.race([told, this.#ended]).finally(() => clearTimeout(timer));
  }
}

function linesOf({ port, path, speech, startsPerSecond, deadlineMs, starts, heads, hasSmallBuffers = false }: LoadPlan): string {
  const gapUs = Math.round(1e6 / startsPerSecond);
  const hex = (bytes: Uint8Array | string): string => Buffer.from(bytes as string).toString("hex");
  return [
    ...["host 127.0.0.1", `port ${port}`, `path ${path}`, `speech ${speech}`, `gap_us ${gapUs}`, `deadline_ms ${deadlineMs}`],
    ...(hasSmallBuffers ? ["small_buffers"] : []),
    ...starts.map((bytes) => `start ${hex(bytes)}`),
    ...heads.map((lines) => `socket ${hex(lines.map((line) => `${line}\r\n`).join(""))}`),
    "go\n",
  ].join("\n");
}

/** Its headers count as its source. */
async function compileClient(): Promise<string> {
  const folder = fileURLToPath(new URL(".", import.meta.url));
  const program = join(peersFolder, "relay_client");
  const headers = readdirSync(folder).filter((name) => name.endsWith(".h"));
  if (existsSync(program) && headers.some((name) => statSync(join(folder, name)).mtimeMs > statSync(program).mtimeMs)) rmSync(program);
  return compile("relay_client", []);
}
