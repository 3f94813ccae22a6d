/** llama.cpp as a contender: its own benchmark programs, a process a measurement. */
import { spawn } from "node:child_process";
import { SetupError } from "../setup/exec.js";
import { peakBytesOf } from "./child.js";
import { llamaCpp } from "./peers.js";
import { type Contender, type DecodeRates, workload } from "./workload.js";

export type FlashAttention = "on" | "off";

/** Its peak is seen only while it runs. */
const peakPollMs = 20;
const runMsMax = 300_000;

export class LlamaCpp implements Contender {
  readonly name: string;
  readonly about: string[] = [];
  /** Bytes of the tensors in the file, as llama-bench counts them. */
  weightBytes = 0;
  #peakBytes = 0;

  constructor(
    private readonly model: string,
    private readonly threads: number,
    readonly flashAttention: FlashAttention,
    name = `llama.cpp, flash attention ${flashAttention}`,
  ) {
    this.name = name;
  }

  async prefill(): Promise<number> {
    const tokens = String(workload.prefillTokens);
    const [result] = JSON.parse(await this.#run(llamaCpp.bench, ["-p", tokens, "-n", "0", "-r", "1", "-o", "json"])) as [
      { avg_ts: number; model_size: number },
    ];
    this.weightBytes = result.model_size;
    return result.avg_ts;
  }

  async decode(batch: number): Promise<DecodeRates> {
    const { promptTokens, generatedTokens } = workload;
    const sizes = ["-npp", String(promptTokens), "-ntg", String(generatedTokens), "-npl", String(batch)];
    // The context is shared by all sequences.
    const context = String(Math.max(workload.contextTokens, batch * (promptTokens + generatedTokens)));
    const out = await this.#run(llamaCpp.batchedBench, ["-c", context, ...sizes, "--output-format", "jsonl"]);
    const line = out.split("\n").find((text) => text.startsWith("{"));
    if (!line) throw new SetupError(`llama-batched-bench printed no result:\n${out}`);
    const { speed_tg, speed } = JSON.parse(line) as { speed_tg: number; speed: number };
    return { decode: speed_tg, whole: speed };
  }

  peakBytes(): number {
    return this.#peakBytes;
  }

  async close(): Promise<void> {}

  #run(program: string, args: string[]): Promise<string> {
    const all = ["-m", this.model, "-t", String(this.threads), "-fa", this.flashAttention, ...args];
    return new Promise((resolve, reject) => {
      const child = spawn(program, all, { stdio: ["ignore", "pipe", "pipe"], timeout: runMsMax });
      const [out, errors]: [string[], string[]] = [[], []];
      child.stdout.setEncoding("utf8").on("data", (text: string) => out.push(text));
      child.stderr.setEncoding("utf8").on("data", (text: string) => errors.push(text));
      const timer = setInterval(() => {
        this.#peakBytes = Math.max(this.#peakBytes, peakBytesOf(child.pid ?? 0) ?? 0);
      }, peakPollMs);
      child.on("error", reject);
      child.on("close", (status) => {
        clearInterval(timer);
        if (status === 0) resolve(out.join(""));
        else reject(new SetupError(`${program} ended with ${status}:\n${errors.join("").slice(-2_000)}`));
      });
    });
  }
}
