/** Who serves streams and prompts in `npm run bench -- interference`: this engine through its binding, and llama.cpp's server through HTTP. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { request as httpRequest, type IncomingMessage } from "node:http";
import { createServer } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { Engine, EngineError, type FinishReason } from "../../engine/binding/index.js";
import { serviceClasses } from "../../shared/classes.js";
import { SetupError } from "../setup/exec.js";
import { greedy } from "./greedy.js";
import type { FlashAttention } from "./llamaCpp.js";
import { llamaCpp } from "./peers.js";

export interface TokenServer {
  readonly name: string;
  /** Generates greedily. @param told is called whenever tokens arrive. @returns why it ended; "refused" where it never began. */
  generate(prompt: Int32Array, tokens: number, told: (count: number) => void, signal: AbortSignal): Promise<FinishReason | "refused">;
  close(): Promise<void>;
}

export interface ServerOptions {
  model: string;
  threads: number;
  /** Sequences at once, and most tokens of one. */
  slots: number;
  contextTokens: number;
}

export class Millrace implements TokenServer {
  readonly name = "millrace";

  private constructor(private readonly engine: Engine) {}

  static async start({ model, threads, slots, contextTokens }: ServerOptions): Promise<Millrace> {
    return new Millrace(await Engine.load({ path: model, threads, slots, contextTokens }));
  }

  get about(): string[] {
    return this.engine.info.log;
  }

  /** Tokens of a vocabulary like this may be put into prompts. */
  get vocabularySize(): number {
    return this.engine.info.vocabularySize;
  }

  generate(prompt: Int32Array, tokens: number, told: (count: number) => void, signal: AbortSignal): Promise<FinishReason | "refused"> {
    return new Promise((resolve, reject) => {
      const request = { ...endless, prompt, maxTokens: tokens, service: "chat" as const, ...serviceClasses.chat };
      try {
        const id = this.engine.submit(request, (event) => {
          if (event.kind === "tokens") told(event.ids.length);
          if (event.kind !== "finished") return;
          signal.removeEventListener("abort", cancel);
          resolve(event.reason);
        });
        const cancel = (): void => this.engine.cancel(id);
        signal.addEventListener("abort", cancel, { once: true });
      } catch (error) {
        if (error instanceof EngineError && error.retryAfterMs > 0) resolve("refused");
        else reject(error);
      }
    });
  }

  close(): Promise<void> {
    return this.engine.close();
  }
}

const endless = { ...greedy, ignoreEos: true };

/** The largest part of a prompt that a step of the peer's may take, beside its decodes. */
export interface LlamaServerOptions extends ServerOptions {
  flashAttention: FlashAttention;
  batchTokens: number;
}

const startMsMax = 120_000;
const pollMs = 50;

export class LlamaServer implements TokenServer {
  private constructor(
    readonly name: string,
    private readonly child: ChildProcess,
    private readonly port: number,
  ) {}

  /** @throws SetupError with its last lines where it does not come up. */
  static async start({ model, threads, slots, contextTokens, flashAttention, batchTokens }: LlamaServerOptions): Promise<LlamaServer> {
    const port = await freePort();
    const sizes = ["-np", slots, "-c", slots * contextTokens, "-b", batchTokens, "-ub", batchTokens].map(String);
    const place = ["--host", "127.0.0.1", "--port", String(port), "--no-webui"];
    const args = ["-m", model, "-t", String(threads), "-fa", flashAttention, ...sizes, "--cont-batching", ...place];
    const child = spawn(llamaCpp.server, args, { stdio: ["ignore", "ignore", "pipe"] });
    const tail: string[] = [];
    createInterface({ input: child.stderr as NodeJS.ReadableStream }).on("line", (line) => {
      tail.push(line);
      if (tail.length > 20) tail.shift();
    });
    const server = new LlamaServer(`llama.cpp, flash attention ${flashAttention}, batches of ${batchTokens}`, child, port);
    for (const begun = performance.now(); !(await server.#isReady()); await sleep(pollMs)) {
      if (child.exitCode === null && performance.now() - begun < startMsMax) continue;
      child.kill();
      throw new SetupError(`${llamaCpp.server} ${args.join(" ")} did not come up:\n${tail.join("\n")}`);
    }
    return server;
  }

  async generate(
    prompt: Int32Array,
    tokens: number,
    told: (count: number) => void,
    signal: AbortSignal,
  ): Promise<FinishReason | "refused"> {
    const settings = { temperature: 0, ignore_eos: true, cache_prompt: false, return_tokens: true, stream: true };
    const body = JSON.stringify({ prompt: [...prompt], n_predict: tokens, ...settings });
    try {
      const response = await this.#post("/completion", body, signal);
      if (response.statusCode !== 200) throw new SetupError(`${this.name} answered ${response.statusCode}`);
      for await (const line of createInterface({ input: response })) {
        if (!line.startsWith("data: ")) continue;
        const event = JSON.parse(line.slice("data: ".length)) as { tokens?: number[]; stop?: boolean };
        if (!event.stop && event.tokens?.length) told(event.tokens.length);
      }
      return signal.aborted ? "cancelled" : "length";
    } catch (error) {
      if (signal.aborted) return "cancelled";
      throw error;
    }
  }

  async close(): Promise<void> {
    if (this.child.exitCode !== null) return;
    const ended = once(this.child, "exit");
    this.child.kill();
    await ended;
  }

  #post(path: string, body: string, signal: AbortSignal): Promise<IncomingMessage> {
    // A connection each: one that is kept may be closed by the other side just as it is used again.
    const agent = false;
    return new Promise((resolve, reject) => {
      const options = {
        host: "127.0.0.1",
        port: this.port,
        path,
        method: "POST",
        signal,
        headers: { "content-type": "application/json" },
        agent,
      };
      httpRequest(options, (response) => {
        // What breaks off when it is aborted is reported where it is read.
        response.on("error", () => {});
        resolve(response);
      })
        .on("error", reject)
        .end(body);
    });
  }

  async #isReady(): Promise<boolean> {
    return fetch(`http://127.0.0.1:${this.port}/health`).then(
      ({ ok }) => ok,
      () => false,
    );
  }
}

async function freePort(): Promise<number> {
  const probe = createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address() as { port: number };
  probe.close();
  await once(probe, "close");
  return port;
}
