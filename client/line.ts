/**
 * One way to an origin, kept open: a socket, the answers that use it, and how it is opened again when it ends: first where it was, and
 * elsewhere only once the edge has found nobody there for long enough.
 */
import { type ErrorCode, MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import type { GoawayReason, HelloInfo } from "../shared/protocol.js";
import type { Home } from "./attach.js";
import type { Connection } from "./connection.js";
import type { ConnectOptions } from "./dial.js";
import { clientLimits } from "./limits.js";
import type { Tether } from "./tether.js";

export type LinkState =
  | { kind: "connecting" }
  | { kind: "open"; hello: HelloInfo }
  /** Tries again in `retryInMs`. */
  | { kind: "waiting"; error: MillraceError; retryInMs: number }
  /** Trying again would fail again: somebody must change something. */
  | { kind: "stopped"; error: MillraceError };

/** What a line needs of the link that it belongs to. */
export interface Exchange {
  connect(how: Pick<ConnectOptions, "resume" | "elsewhere" | "onDial" | "signal">): Promise<Connection>;
  /** New answers go by this line; one by which none go closes with its last answer. */
  isCurrent(line: Line): boolean;
  stateChanged(line: Line, state: LinkState): void;
  /** The line's origin wants to be left. */
  goaway(line: Line, reason: GoawayReason): void;
  /** The line has no way back to its origin: its answers go on by the current one, restarted where that origin is given up. */
  stranded(line: Line, isGivenUp: boolean): void;
  closed(line: Line): void;
}

/** How a line is opened the first time. */
export interface Departure {
  /** By this resume token; without one, by ticket. */
  back?: Home;
  /** At another origin than `back`'s, and at none rather than there. */
  elsewhere?: boolean;
}

export class Line {
  readonly #tethers = new Set<Tether>();
  readonly #rejoins = new Map<Tether, ReturnType<typeof setTimeout>>();
  /** Where the last socket led, or the next is to begin. */
  #back: Home | undefined;
  /** The run that is to be left, until another is found. */
  #leaves: string | undefined;
  #connection: Connection | undefined;
  #dialing: AbortController | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** A server named the time at which to come again. */
  #isTold = false;
  #failures = 0;
  #openedMs = 0;
  #lostMs: number | undefined;
  #failoverWaitMs: number = limits.failoverWaitMs;
  /** The edge was reached, and did not find the origin. */
  #isHomeAway = false;
  #isClosed = false;

  constructor(
    private readonly exchange: Exchange,
    { back, elsewhere = false }: Departure = {},
  ) {
    this.#back = back;
    this.#leaves = elsewhere ? back?.epoch : undefined;
  }

  /** The run that it leads to, as far as is known. */
  get home(): Home | undefined {
    return this.#leaves === undefined ? this.#back : undefined;
  }

  get connection(): Connection | undefined {
    return this.#connection;
  }

  /** Nobody has used it yet: neither a socket nor an answer. */
  get isFresh(): boolean {
    return !this.#back && !this.#dialing && this.#tethers.size === 0;
  }

  get tethers(): readonly Tether[] {
    return [...this.#tethers];
  }

  has(tether: Tether): boolean {
    return this.#tethers.has(tether);
  }

  /** The way back for a line that is fresh. */
  begin(back: Home): void {
    this.#back = back;
  }

  /** The connection has taken so many streams that its origin may take no more. */
  get isWornOut(): boolean {
    return (this.#connection?.used ?? 0) >= clientLimits.wornStreamsMin;
  }

  /** An answer goes by this line from now on, which opens within `inMs` if need be and no server said otherwise. */
  take(tether: Tether, inMs = 0): void {
    this.#tethers.add(tether);
    if (this.#connection) this.join(tether);
    else if (!this.#isTold) this.open(inMs);
  }

  /** Joins one of its answers, on the connection that is open or the next one. */
  join(tether: Tether): void {
    // One that has just ended is about to be replaced, and the next joins all.
    if (this.#connection && !this.#connection.ended && this.#back) tether.join(this.#connection, this.#back);
  }

  /** Joins an answer that was refused later. */
  joinIn(tether: Tether, ms: number): void {
    this.#forgetRejoin(tether);
    const timer = setTimeout(() => {
      this.#rejoins.delete(tether);
      this.join(tether);
    }, ms);
    this.#rejoins.set(tether, timer);
  }

  /** An answer does not go by this line any more. */
  drop(tether: Tether): void {
    this.#forgetRejoin(tether);
    this.#tethers.delete(tether);
    this.#closeIfIdle();
  }

  /** Connects within so many milliseconds, unless it is connected or about to be. */
  open(inMs = 0): void {
    if (this.#isClosed || this.#connection || this.#dialing) return;
    clearTimeout(this.#timer);
    if (inMs === 0) void this.#dial();
    else this.#timer = setTimeout(() => void this.#dial(), inMs);
  }

  /** A page woke up, or a network came back: what waits is tried now, and what may be dead is looked at. */
  probe(): void {
    if (this.#connection) this.#connection.probe();
    else if (this.#timer !== undefined) this.open();
  }

  /** It is not the current line any more. */
  retire(): void {
    this.#closeIfIdle();
  }

  /** Ends it. Its answers are somebody else's concern. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#stopTimers();
    this.#dialing?.abort();
    this.#connection?.close();
    this.#connection = undefined;
    this.exchange.closed(this);
  }

  async #dial(): Promise<void> {
    this.#timer = undefined;
    this.#isTold = false;
    const isFailover = this.#isFailoverDue();
    if (isFailover && !this.exchange.isCurrent(this)) {
      this.exchange.stranded(this, true);
      return;
    }
    const dialing = new AbortController();
    this.#dialing = dialing;
    this.exchange.stateChanged(this, { kind: "connecting" });
    let dialed: Connection | undefined;
    try {
      const token = this.#back?.token ? { resume: this.#back } : {};
      const elsewhere = isFailover || this.#leaves !== undefined;
      const onDial = (connection: Connection): void => {
        dialed = connection;
      };
      const connection = await this.exchange.connect({ ...token, elsewhere, onDial, signal: dialing.signal });
      this.#dialing = undefined;
      this.#opened(connection, isFailover);
    } catch (error) {
      this.#dialing = undefined;
      const reason = error instanceof MillraceError ? error : new MillraceError("internal", String(error));
      this.#isHomeAway = homeIsAway.has(reason.code) || (dialed?.wasReached === true && isSilence.has(reason.code));
      this.#failed(reason, false);
    }
  }

  /** The origin that answers were left at was looked for long enough, and it was not the network that kept them apart. */
  #isFailoverDue(): boolean {
    if (!this.#isHomeAway || this.#lostMs === undefined || !this.home?.token) return false;
    return performance.now() - this.#lostMs >= this.#failoverWaitMs;
  }

  #opened(connection: Connection, isFailover: boolean): void {
    const { epoch, resumeToken, failoverWaitMs } = connection.hello;
    if (this.#isClosed || epoch === this.#leaves) {
      connection.close();
      this.#failed(new MillraceError("draining", "the origin is stopping, and there is no other yet"), false);
      return;
    }
    // What whoever is told below asks for joins by itself.
    const waiting = this.tethers;
    // Answers share the record of their home, and with it each new token.
    const known = this.#back?.epoch === epoch ? Object.assign(this.#back, { token: resumeToken }) : undefined;
    this.#back = known ?? { url: connection.url, epoch, token: resumeToken };
    this.#leaves = this.#lostMs = undefined;
    this.#isHomeAway = false;
    this.#failoverWaitMs = failoverWaitMs;
    this.#openedMs = performance.now();
    this.#connection = connection;
    connection.closed.then((reason) => this.#lost(connection, reason));
    this.exchange.stateChanged(this, { kind: "open", hello: connection.hello });
    connection.onGoaway = (reason) => this.exchange.goaway(this, reason);
    if (connection.goaway) this.exchange.goaway(this, connection.goaway);
    for (const tether of waiting) {
      const isGivenUp = isFailover && tether.home !== undefined && tether.home.epoch !== epoch;
      if (this.has(tether) && (!isGivenUp || tether.restart())) this.join(tether);
    }
  }

  #lost(connection: Connection, reason: MillraceError): void {
    if (this.#connection !== connection) return;
    this.#connection = undefined;
    this.#lostMs = performance.now();
    for (const tether of this.#tethers) tether.lost();
    for (const tether of this.#rejoins.keys()) this.#forgetRejoin(tether);
    const wasOfUse = connection.wasUseful || this.#lostMs - this.#openedMs >= clientLimits.steadyMs;
    if (wasOfUse) this.#failures = 0;
    this.#closeIfIdle();
    if (!this.#isClosed) this.#failed(reason, wasOfUse);
  }

  /** @param isFirst of a connection that was of use: the next one is opened at once. */
  #failed(error: MillraceError, isFirst: boolean): void {
    if (error.retry === "never") this.#stop(error);
    if (this.#isClosed || error.retry === "never") return;
    this.#lostMs ??= performance.now();
    const isTokenRefused = error.retry === "ticket" && this.#back !== undefined && this.#back.token !== "";
    if (isTokenRefused && this.#back) this.#back.token = "";
    for (const tether of this.tethers) if (tether.awayMs() > clientLimits.awayMsMax) tether.fail(error);
    if (isTokenRefused && !this.exchange.isCurrent(this)) this.exchange.stranded(this, false);
    // Without answers a line that is not the current one has closed.
    if (this.#isClosed) return;
    const isAtOnce = error.retryAfterMs === 0 && (isFirst || isTokenRefused);
    const retryInMs = isAtOnce ? Math.random() * clientLimits.redialJitterMs : this.#pauseMs(error);
    this.#isTold = error.retryAfterMs > 0;
    this.#timer = setTimeout(() => void this.#dial(), retryInMs);
    this.exchange.stateChanged(this, isAtOnce ? { kind: "connecting" } : { kind: "waiting", error, retryInMs });
  }

  #pauseMs({ retryAfterMs }: MillraceError): number {
    const backoff = backoffMs(this.#failures++);
    if (retryAfterMs === 0) return backoff;
    // All who were told the same must not come back in the same instant.
    return Math.min(retryAfterMs, clientLimits.retryAfterMsMax) + Math.random() * clientLimits.redialJitterMs;
  }

  #stop(error: MillraceError): void {
    if (this.#isClosed) return;
    for (const tether of this.tethers) tether.fail(error);
    this.exchange.stateChanged(this, { kind: "stopped", error });
  }

  #closeIfIdle(): void {
    if (this.#tethers.size === 0 && !this.exchange.isCurrent(this)) this.close();
  }

  #forgetRejoin(tether: Tether): void {
    clearTimeout(this.#rejoins.get(tether));
    this.#rejoins.delete(tether);
  }

  #stopTimers(): void {
    clearTimeout(this.#timer);
    for (const tether of this.#rejoins.keys()) this.#forgetRejoin(tether);
  }
}

/** What the edge says of an origin that has nobody's answers to give. */
const homeIsAway: ReadonlySet<ErrorCode> = new Set(["origin_unreachable", "draining"]);
/** What is left of an origin, or of a network, that says nothing. */
const isSilence: ReadonlySet<ErrorCode> = new Set(["connection_lost", "connection_timeout"]);

/** Doubles with each failure up to a bound; the half that is random keeps the clients of a restarted edge from returning as one. */
export function backoffMs(failures: number, random: number = Math.random()): number {
  const most = Math.min(clientLimits.backoffMsMin * 2 ** failures, clientLimits.backoffMsMax);
  return Math.round((most / 2) * (1 + random));
}
