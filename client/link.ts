/**
 * Asks, and keeps what is asked: connections come and go, origins die and are replaced, and each answer goes on where it was. New answers
 * go by the current line; others last as long as there are answers at the origins that they lead to.
 */
import { MillraceError } from "../shared/errors.js";
import type { ChatMessage, GoawayReason, HelloInfo, StartOptions } from "../shared/protocol.js";
import type { Asked, Home } from "./attach.js";
import type { Connection } from "./connection.js";
import { type ConnectOptions, connect, type EdgeOptions, socketConstructor } from "./dial.js";
import { clientLimits } from "./limits.js";
import { backoffMs, type Departure, type Exchange, Line, type LinkState } from "./line.js";
import { watchWakes } from "./page.js";
import { type Kept, type Reading, Response } from "./response.js";
import type { Keeper, Leave, Tether } from "./tether.js";

/** A turn of a conversation, in the form that most APIs have. */
export interface Message {
  role: ChatMessage[0];
  content: string;
}

/** What may be asked. The rest of START's options is the link's own business. */
export type AskOptions = Omit<StartOptions, "attempt" | "sentTo" | "tokenIds" | "continueIds" | "creditSeq">;

export interface LinkOptions extends EdgeOptions {
  /** Told how it goes with the connection on which the next answer would be asked. */
  onState?: (state: LinkState) => void;
}

export class Link {
  readonly #lines = new Set<Line>();
  readonly #exchange: Exchange = {
    connect: (how) => this.#connect(how),
    isCurrent: (line) => line === this.#current,
    stateChanged: (line, state) => this.#stateChanged(line, state),
    goaway: (line, reason) => this.#goaway(line, reason),
    stranded: (line, isGivenUp) => {
      for (const tether of line.tethers) this.#move(tether, line, isGivenUp);
    },
    closed: (line) => this.#lines.delete(line),
  };
  readonly #keeper: Keeper = {
    left: (tether, how) => this.#left(tether, how),
    rejoin: (tether) => this.#place(tether),
  };
  #current: Line;
  #state: LinkState | undefined;
  #lastStream = 0;
  #unwatch: (() => void) | undefined;
  #isClosed = false;

  /** @throws TypeError where this runtime has no WebSocket and none is given. */
  constructor(private readonly options: LinkOptions) {
    socketConstructor(options);
    this.#current = this.#add();
  }

  /** How it goes; undefined before the first attempt to connect. */
  get state(): LinkState | undefined {
    return this.#state;
  }

  /** What the origin that is connected now said of itself. */
  get hello(): HelloInfo | undefined {
    return this.#current.connection?.hello;
  }

  /** Connects now, also where it waits or has stopped, and keeps connected until `close`. */
  open(): void {
    if (this.#isClosed) return;
    this.#watch();
    this.#current.open();
  }

  /** Ends all connections. Answers end here with `closed_by_caller`; at their origins they go on for their grace. */
  close(): void {
    this.#isClosed = true;
    this.#unwatch?.();
    const reason = new MillraceError("closed_by_caller", "the link was closed by its owner");
    for (const line of this.#lines) {
      for (const tether of line.tethers) tether.fail(reason);
      line.close();
    }
  }

  /**
   * Asks for an answer; it connects by itself. It never throws: what is wrong with the question, its size included, ends the answer.
   * @param reading how it will be read; nothing of it is sent.
   */
  start(messages: readonly (Message | ChatMessage)[], options: AskOptions = {}, reading: Reading = {}): Response {
    const pairs = messages.map((message): ChatMessage => ("role" in message ? [message.role, message.content] : message));
    const response = this.#respond(askedOf(pairs, options), reading);
    if (!response.ended) this.#place(response.tether);
    return response;
  }

  /** The answer of which another page, or this one before it was loaded anew, kept this. What had come of it is there at once. */
  adopt(kept: Kept): Response {
    const response = this.#respond(kept.asked, kept.reading, kept);
    const { tether } = response;
    if (response.ended) return response;
    if (tether.home && this.#current.isFresh) this.#current.begin(tether.home);
    this.#place(tether);
    return response;
  }

  #respond(asked: Asked, reading: Reading, kept?: Kept): Response {
    try {
      return new Response(asked, reading, this.#keeper, kept);
    } catch (error) {
      const response = new Response(asked, {}, this.#keeper, kept);
      response.tether.fail(error as MillraceError);
      return response;
    }
  }

  /** Puts an answer on a line: the one to its home or, where it has none yet, the current one. */
  #place(tether: Tether): void {
    const { home } = tether;
    if (!this.#isClosed) this.#watch();
    if (this.#isClosed) tether.fail(new MillraceError("closed_by_caller", "the link was closed: make another"));
    else if (!home) this.#current.take(tether);
    else (this.#lineTo(home) ?? this.#add({ back: home })).take(tether);
  }

  #lineTo(home: Home, other?: Line): Line | undefined {
    return [this.#current, ...this.#lines].find((line) => line !== other && line.home?.epoch === home.epoch);
  }

  #add(departure?: Departure): Line {
    const line = new Line(this.#exchange, departure);
    this.#lines.add(line);
    return line;
  }

  /** An answer has no stream any more. */
  #left(tether: Tether, how: Leave): void {
    const line = [...this.#lines].find((each) => each.has(tether));
    if (!line) return;
    if (how === "over") line.drop(tether);
    else if (how === "gone") this.#restartOn(line, tether);
    else if (how === "misrouted") this.#sendHome(tether, line);
    else if (how === "handed_off") {
      this.#goaway(line, "draining");
      this.#move(tether, line, true);
    } else this.#refused(tether, line, how);
  }

  #restartOn(line: Line, tether: Tether): void {
    if (tether.restart()) line.join(tether);
  }

  /** Its origin is another: there, while something leads there and that was not tried for too long. */
  #sendHome(tether: Tether, line: Line): void {
    const { home } = tether;
    const { times, sinceMs } = tether.strayed();
    if (!home?.token || sinceMs >= (line.connection?.hello.failoverWaitMs ?? 0)) {
      this.#restartOn(line, tether);
      return;
    }
    line.drop(tether);
    const way = this.#lineTo(home, line) ?? this.#add({ back: home });
    way.take(tether, times === 1 ? 0 : backoffMs(times - 2));
  }

  /** An origin did not take it. One that has run elsewhere is not given up for that. */
  #refused(tether: Tether, line: Line, error: MillraceError): void {
    const isStart = tether.id === undefined;
    const { times } = tether.refused();
    if (isStart && (error.code === "draining" || (error.code === "streams_exhausted" && line.isWornOut))) {
      this.#goaway(line, error.code === "draining" ? "draining" : "worn_out");
      this.#move(tether, line, false);
    } else if (error.retry !== "later" || !tether.wasTaken || tether.awayMs() > clientLimits.awayMsMax) tether.fail(error);
    else line.joinIn(tether, Math.min(error.retryAfterMs || backoffMs(times - 1), clientLimits.retryAfterMsMax));
  }

  /** The current line leads to an origin that wants to be left: the next one is opened before it closes. */
  #goaway(line: Line, reason: GoawayReason | "worn_out"): void {
    if (line !== this.#current) return;
    const { home: back } = line;
    if (back && reason === "draining") this.#current = this.#add({ back, elsewhere: true });
    else if (back && reason === "worn_out") this.#current = this.#add({ back });
    else this.#current = this.#add();
    this.#current.open(Math.random() * clientLimits.redialJitterMs);
    // What no origin has seen is for the next one.
    for (const tether of line.tethers) if (!tether.home) this.#move(tether, line, false);
    line.retire();
  }

  /** Onto the current line. */
  #move(tether: Tether, from: Line, isRestart: boolean): void {
    from.drop(tether);
    if (!isRestart || tether.restart()) this.#current.take(tether);
  }

  #stateChanged(line: Line, state: LinkState): void {
    if (line !== this.#current || this.#isClosed) return;
    // While another connection serves, looking for the next one is nobody's concern.
    if (state.kind === "connecting" && [...this.#lines].some((each) => each.connection)) return;
    this.#state = state;
    this.options.onState?.(state);
  }

  #watch(): void {
    this.#unwatch ??= watchWakes(() => {
      for (const line of this.#lines) line.probe();
    });
  }

  #connect(how: Omit<ConnectOptions, "edge">): Promise<Connection> {
    const { onState, ...edge } = this.options;
    // Numbers go on from socket to socket, so that a record of all messages names each stream once.
    return connect({ ...edge, ...how, nextStream: () => ++this.#lastStream });
  }
}

/** A key, and a seed, make the question one that can be asked again and be the same. */
function askedOf(messages: ChatMessage[], given: StartOptions): Asked {
  const { attempt, sentTo, continueIds, creditSeq, ...options } = given;
  const { key = randomKey(), seed = randomSeed() } = options;
  return { messages, options: { ...options, key, seed, tokenIds: true } };
}

/** crypto.randomUUID is only there for pages that came over TLS. */
function randomKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function randomSeed(): number {
  const [high = 0, low = 0] = crypto.getRandomValues(new Uint32Array(2));
  return (high % 2 ** 21) * 2 ** 32 + low;
}
