/** Keeps one connection open: connects, says how it goes, and connects again with a growing pause after each failure. */
import { MillraceError } from "../shared/errors.js";
import type { HelloInfo } from "../shared/protocol.js";
import type { Connection } from "./connection.js";
import { clientLimits } from "./limits.js";

export type LinkState =
  | { kind: "connecting" }
  | { kind: "open"; hello: HelloInfo }
  /** Tries again in `retryInMs`. */
  | { kind: "waiting"; error: MillraceError; retryInMs: number }
  /** Trying again would fail again: somebody must change something. */
  | { kind: "stopped"; error: MillraceError };

export class Link {
  #connection: Connection | undefined;
  #attempt: Promise<Connection> | undefined;
  #failures = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #closed = false;

  /** @param dial opens a connection within a bound of its own. */
  constructor(
    private readonly dial: () => Promise<Connection>,
    private readonly onState: (state: LinkState) => void,
  ) {}

  /** The open connection, or the outcome of an attempt that is made at once. @throws MillraceError why it failed. */
  connection(): Promise<Connection> {
    if (this.#connection && !this.#connection.ended) return Promise.resolve(this.#connection);
    this.#attempt ??= this.#try().finally(() => {
      this.#attempt = undefined;
    });
    return this.#attempt;
  }

  /** Connects, now and whenever the connection is lost, until `close`. */
  open(): void {
    this.connection().catch(() => {});
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#connection?.close();
  }

  async #try(): Promise<Connection> {
    clearTimeout(this.#timer);
    this.onState({ kind: "connecting" });
    try {
      const connection = await this.dial();
      this.#connection = connection;
      if (this.#closed) connection.close();
      this.#failures = 0;
      this.onState({ kind: "open", hello: connection.hello });
      connection.closed.then((reason) => this.#lost(reason));
      return connection;
    } catch (error) {
      const reason = error instanceof MillraceError ? error : new MillraceError("internal", String(error));
      this.#lost(reason);
      throw reason;
    }
  }

  #lost(error: MillraceError): void {
    if (this.#closed) return;
    if (error.retry === "never") {
      this.onState({ kind: "stopped", error });
      return;
    }
    const retryInMs = Math.max(error.retryAfterMs, backoffMs(this.#failures++));
    this.#timer = setTimeout(() => this.open(), retryInMs);
    this.onState({ kind: "waiting", error, retryInMs });
  }
}

/** Doubles with each failure up to a bound; the half that is random keeps the clients of a restarted edge from returning as one. */
export function backoffMs(failures: number, random: number = Math.random()): number {
  const most = Math.min(clientLimits.backoffMsMin * 2 ** failures, clientLimits.backoffMsMax);
  return Math.round((most / 2) * (1 + random));
}
