/** Which blocks of our own code a piece of work runs, by V8's own account. */
import { Session } from "node:inspector";

interface FunctionCoverage {
  ranges: { startOffset: number; endOffset: number; count: number }[];
}

export class Coverage {
  readonly #session = new Session();
  /** Blocks that have been run, by file and offsets. */
  readonly #seen = new Set<string>();

  /** @param of files whose URL contains this. */
  constructor(private readonly of: RegExp) {
    this.#session.connect();
    this.#session.post("Profiler.enable");
    this.#session.post("Profiler.startPreciseCoverage", { callCount: true, detailed: true });
  }

  get count(): number {
    return this.#seen.size;
  }

  /** @returns how many blocks ran since the last call that never had before. */
  take(): number {
    const before = this.#seen.size;
    // In this process the answer comes within the call.
    this.#session.post("Profiler.takePreciseCoverage", (error, taken) => {
      if (error) throw error;
      for (const { url, functions } of taken.result) if (this.of.test(url)) for (const each of functions) this.#add(url, each);
    });
    return this.#seen.size - before;
  }

  close(): void {
    this.#session.disconnect();
  }

  /** Of nested ranges the inner ones are more exact; one that was run often is another block than one that was run once. */
  #add(url: string, { ranges }: FunctionCoverage): void {
    for (const { startOffset, endOffset, count } of ranges)
      if (count > 0) this.#seen.add(`${url}:${startOffset}-${endOffset}:${Math.min(3, Math.floor(Math.log2(count)))}`);
  }
}
