/** llama.cpp as a source of logits, through peer-logits.cpp. */
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import type { Readable, Writable } from "node:stream";
import type { LogitSource } from "../eval/score.js";
import { SetupError } from "../setup/exec.js";
import type { FlashAttention } from "./llamaCpp.js";
import { compile, llamaFlags } from "./peers.js";

export class PeerLogits implements LogitSource {
  readonly name: string;
  #vocabulary = 0;
  #bytes = Buffer.alloc(0);
  #filled = 0;
  #arrived: () => void = () => {};
  #end: Error | undefined;

  private constructor(
    private readonly child: ChildProcessByStdio<Writable, Readable, Readable>,
    readonly systemInfo: () => string,
    flashAttention: FlashAttention,
  ) {
    this.name = `llama.cpp, flash attention ${flashAttention}`;
    child.stdout.on("readable", () => this.#arrived());
    child.on("error", (error) => this.#over(error.message));
    child.on("close", (status) => this.#over(`it ended with ${status}: ${systemInfo()}`));
    child.stdin.on("error", () => {}); // the process ended, which is said above
  }

  static async start(model: string, threads: number, flashAttention: FlashAttention): Promise<PeerLogits> {
    const program = await compile("peer-logits", llamaFlags);
    const child = spawn(program, [model, String(threads), flashAttention], { stdio: ["pipe", "pipe", "pipe"] });
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    const source = new PeerLogits(child, () => said.trim(), flashAttention);
    source.#vocabulary = (await source.#read(4)).readUInt32LE(0);
    return source;
  }

  async logits(tokens: Int32Array): Promise<Float32Array> {
    this.child.stdin.write(Buffer.concat([Buffer.from(Uint32Array.of(tokens.length).buffer), Buffer.from(tokens.slice().buffer)]));
    const bytes = await this.#read(4 * tokens.length * this.#vocabulary);
    return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  }

  async close(): Promise<void> {
    if (this.#end) return;
    const closed = once(this.child, "close");
    this.child.stdin.end();
    await closed;
  }

  /** @returns memory that the next call may reuse. */
  async #read(size: number): Promise<Buffer> {
    if (this.#bytes.length < size) this.#bytes = Buffer.alloc(size);
    this.#filled = 0;
    while (this.#filled < size) {
      if (this.#end) throw this.#end;
      const chunk = this.child.stdout.read(Math.min(size - this.#filled, this.child.stdout.readableLength)) as Buffer | null;
      if (chunk) this.#filled += chunk.copy(this.#bytes, this.#filled);
      else
        await new Promise<void>((resolve) => {
          this.#arrived = resolve;
        });
    }
    return this.#bytes.subarray(0, size);
  }

  #over(why: string): void {
    this.#end ??= new SetupError(`${this.name} gave no logits: ${why}`);
    this.#arrived();
  }
}
