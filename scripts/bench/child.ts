/**
 * A contender in a process of its own, so that its memory is its own. The process answers one question at a time: childMillrace.ts and
 * childNodeLlama.ts are what it runs.
 */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { MatrixWork } from "../../engine/binding/index.js";
import { SetupError } from "../setup/exec.js";
import type { Contender, DecodeRates } from "./workload.js";

export interface ChildOptions {
  model: string;
  threads: number;
  /** A text of which prompts are made. */
  textFile: string;
}

export type Question = { kind: "prefill" } | { kind: "decode"; batch: number };
export type Answer = { about: string[]; work?: MatrixWork } | { rate: number } | { rates: DecodeRates } | { failed: string };

/** Longer than loading or any one measurement takes on a slow machine. */
const answerMsMax = 300_000;

export class ChildContender implements Contender {
  private constructor(
    readonly name: string,
    readonly about: string[],
    /** What the model's matrices ask of a step, where the contender knows it. */
    readonly work: MatrixWork | undefined,
    private readonly child: ChildProcess,
  ) {}

  /** Starts `scripts/bench/FILE` and waits until its model is loaded and warm. @throws SetupError saying why it is not. */
  static async start(name: string, file: string, options: ChildOptions): Promise<ChildContender> {
    const path = fileURLToPath(new URL(file, import.meta.url));
    const child = fork(path, [JSON.stringify(options)], { execArgv: ["--import", "tsx"], stdio: ["ignore", "ignore", "inherit", "ipc"] });
    try {
      const answer = await nextAnswer(name, child);
      const { about, work } = "about" in answer ? answer : { about: [], work: undefined };
      return new ChildContender(name, about, work, child);
    } catch (error) {
      child.kill();
      throw error;
    }
  }

  async prefill(): Promise<number> {
    const answer = await this.#ask({ kind: "prefill" });
    return "rate" in answer ? answer.rate : Number.NaN;
  }

  async decode(batch: number): Promise<DecodeRates> {
    const answer = await this.#ask({ kind: "decode", batch });
    return "rates" in answer ? answer.rates : { decode: Number.NaN, whole: Number.NaN };
  }

  peakBytes(): number {
    return peakBytesOf(this.child.pid as number) ?? 0;
  }

  async close(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const ended = once(this.child, "exit");
    this.child.disconnect();
    await ended;
  }

  #ask(question: Question): Promise<Answer> {
    this.child.send(question);
    return nextAnswer(this.name, this.child);
  }
}

async function nextAnswer(name: string, child: ChildProcess): Promise<Answer> {
  const signal = AbortSignal.timeout(answerMsMax);
  const ended = new AbortController();
  try {
    const [answer] = (await Promise.race([
      once(child, "message", { signal: AbortSignal.any([signal, ended.signal]) }),
      once(child, "exit", { signal: ended.signal }).then(([status]) => [{ failed: `its process ended with ${status}` }]),
    ])) as [Answer];
    if ("failed" in answer) throw new SetupError(`${name}: ${answer.failed}`);
    return answer;
  } finally {
    ended.abort();
  }
}

/** Answers the parent's questions until it disconnects. */
export async function serve(about: string[], contender: Pick<Contender, "prefill" | "decode">, work?: MatrixWork): Promise<void> {
  const send = (answer: Answer): void => void process.send?.(answer);
  process.on("message", (question: Question) => {
    const work = question.kind === "prefill" ? contender.prefill() : contender.decode(question.batch);
    work.then(
      (result) => send(typeof result === "number" ? { rate: result } : { rates: result }),
      (error: unknown) => send({ failed: String(error) }),
    );
  });
  send(work ? { about, work } : { about });
  await once(process, "disconnect");
}

/** Says why a child could not begin, and ends it. */
export function failed(error: unknown): void {
  process.send?.({ failed: error instanceof Error ? error.message : String(error) } satisfies Answer, () => process.exit(1));
}

/** Most resident memory that a process has had; undefined once it is gone. */
export function peakBytesOf(pid: number): number | undefined {
  try {
    const kibibytes = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
    return kibibytes === undefined ? undefined : 1_024 * Number(kibibytes);
  } catch {
    return undefined;
  }
}
