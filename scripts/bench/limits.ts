/** What this machine can do at most, measured with small programs of our own: read memory, multiply int8. */
import { compile, must } from "./peers.js";

export interface Limits {
  /** Bytes a second that all threads together read from memory. */
  readBytes: number;
  /** int8 multiply-adds a second of all threads together, on registers alone. */
  multiplyAdds: number;
  /** What multiplied. */
  instruction: string;
}

/** Measures as often as it is asked and keeps the best, since company can only make it less. */
export class LimitMeter {
  best: Limits = { readBytes: 0, multiplyAdds: 0, instruction: "" };

  constructor(private readonly threads: number) {}

  async measure(): Promise<void> {
    const threads = [String(this.threads)];
    const read = Number(await must(await compile("bandwidth", []), threads));
    const [, multiplied, instruction] = /^(\d+) (.+)$/m.exec(await must(await compile("int8", []), threads)) ?? [];
    this.best = {
      readBytes: Math.max(this.best.readBytes, read),
      multiplyAdds: Math.max(this.best.multiplyAdds, Number(multiplied)),
      instruction: instruction ?? "",
    };
  }
}
