/** A server that runs as a child process: known to be ready by a line it prints, ended with all its own children. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { SetupError } from "./exec.js";

/** Lines of its stdout kept to show when it ends unasked; its stderr has been handed on by then. */
const tailLinesMax = 20;

export interface ServerSpec {
  /** Names it in messages. */
  name: string;
  /** Default: this Node. */
  program?: string;
  args: string[];
  cwd: string;
  env: NodeJS.ProcessEnv;
  /** Matches the line that says it is ready. */
  ready: RegExp;
  readyMsMax: number;
  /** After a request to stop, this long passes before it is killed. */
  stopMsMax: number;
  /** Takes each line of its stderr. */
  onErrorLine: (line: string) => void;
}

export class ServerProcess {
  /** Settles when it is ready, with the line that said so; rejects if it ends or says nothing for too long. */
  readonly ready: Promise<RegExpExecArray>;
  /** Settles when the process has ended, with how. */
  readonly ended: Promise<string>;
  readonly #child: ChildProcess;
  readonly #tail: string[] = [];
  #over = false;

  constructor(private readonly spec: ServerSpec) {
    // A process group of its own: Ctrl-C in the terminal reaches the parent alone, which ends its servers in order.
    this.#child = spawn(spec.program ?? process.execPath, spec.args, {
      cwd: spec.cwd,
      env: spec.env,
      detached: true,
      stdio: ["ignore", "pipe", "pipe"],
    });
    running.add(this);
    this.ended = new Promise((resolve) => {
      this.#child.on("error", (error) => resolve(error.message));
      this.#child.on("close", (status, signal) => resolve(signal ? `was ended by ${signal}` : `ended with exit status ${status}`));
    });
    void this.ended.then(() => {
      this.#over = true;
      running.delete(this);
    });
    this.ready = this.#watch();
    this.ready.catch(() => {});
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  get name(): string {
    return this.spec.name;
  }

  /** Asks it to stop and waits until it has; one that takes too long is killed. */
  async stop(): Promise<void> {
    if (this.#over) return;
    this.#signal("SIGTERM");
    const timer = setTimeout(() => this.kill(), this.spec.stopMsMax);
    await this.ended;
    clearTimeout(timer);
    this.kill(); // what it started and left behind
  }

  /** Ends it and all that it started, now. */
  kill(): void {
    try {
      process.kill(-this.pid, "SIGKILL");
    } catch {
      // The group is gone already.
    }
  }

  #signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  #watch(): Promise<RegExpExecArray> {
    const { name, ready, readyMsMax, onErrorLine } = this.spec;
    const keep = (line: string): void => {
      this.#tail.push(line);
      if (this.#tail.length > tailLinesMax) this.#tail.shift();
    };
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new SetupError(`${name} was not ready after ${readyMsMax / 1000} s. It said:\n${this.#tail.join("\n")}`)),
        readyMsMax,
      );
      createInterface({ input: this.#child.stdout as NodeJS.ReadableStream }).on("line", (line) => {
        keep(line);
        const match = ready.exec(line);
        if (!match) return;
        clearTimeout(timer);
        resolve(match);
      });
      createInterface({ input: this.#child.stderr as NodeJS.ReadableStream }).on("line", onErrorLine);
      void this.ended.then((how) => {
        clearTimeout(timer);
        reject(new SetupError(`${name} ${how} before it was ready. It said:\n${this.#tail.join("\n")}`));
      });
    });
  }
}

/** None outlives this process, however it ends. */
const running = new Set<ServerProcess>();
process.on("exit", () => {
  for (const server of running) server.kill();
});
