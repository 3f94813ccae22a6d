import type { EngineEvent } from "./events.js";

export type Listener = (event: EngineEvent) => void;

/** Who hears which request, until its `finished`. */
export class Listeners {
  readonly #of = new Map<number, Listener>();
  readonly #idle: (() => void)[] = [];

  /** @param busy is told when the first listener comes and when the last one has gone. */
  constructor(private readonly busy: (busy: boolean) => void) {}

  add(request: number, listener: Listener): void {
    if (this.#of.size === 0) this.busy(true);
    this.#of.set(request, listener);
  }

  tell(event: EngineEvent): void {
    const listener = this.#of.get(event.request);
    const last = event.kind === "finished" && this.#of.delete(event.request) && this.#of.size === 0;
    if (last) this.busy(false);
    try {
      listener?.(event);
    } catch (error) {
      // Node only warns of what is thrown through an addon, and the step's other events would be lost with it: thrown anew, outside.
      setImmediate(() => {
        throw error;
      });
    }
    if (last) for (const resolve of this.#idle.splice(0)) resolve();
  }

  /** Settles when every request has been told its end. */
  idle(): Promise<void> {
    return this.#of.size === 0 ? Promise.resolve() : new Promise((resolve) => this.#idle.push(resolve));
  }
}
