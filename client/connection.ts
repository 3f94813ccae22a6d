/**
 * One WebSocket: it opens within a bound, answers PING, hands each message to its stream's owner, and ends for one stated reason. Of
 * answers' lives it knows nothing, and it never opens another: that is link.ts.
 */
import { decodeServerMessage, encode, streamOf } from "../shared/codec.js";
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import { type ClientMessage, type GoawayReason, type HelloInfo, Op, type ServerMessage } from "../shared/protocol.js";
import { clientLimits } from "./limits.js";

/** The part of a WebSocket that is used: browsers' own and that of the package `ws` both have it. */
export interface Socket {
  binaryType: string;
  send(bytes: Uint8Array): void;
  close(code?: number, reason?: string): void;
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
}

export type SocketConstructor = new (url: string, protocols: string[]) => Socket;

/** Whose a stream is. */
export interface StreamOwner {
  /** Takes one of its messages. */
  hear(message: ServerMessage): void;
  /** One of its messages could not be read. The stream is not listened to any more. */
  broken(reason: MillraceError): void;
}

export interface ConnectionOptions {
  /** Where it is opened. */
  url: string;
  /** How long it may take until HELLO. */
  openMs: number;
  /** Sees every message that arrives, before it is acted upon. */
  onMessage?: (message: ServerMessage) => void;
  /** Gives each stream its number. Default: from 1. */
  nextStream?: () => number;
}

export class Connection {
  /** Resolves at HELLO; rejects with the reason if the connection ends before. */
  readonly opened: Promise<this>;
  /** Resolves when the connection has ended, with the reason. */
  readonly closed: Promise<MillraceError>;
  /** Told, once, that the origin wants it to be replaced. */
  onGoaway: ((reason: GoawayReason) => void) | undefined;

  readonly #owners = new Map<number, StreamOwner>();
  /** Streams that had their last message, the oldest first. */
  readonly #over = new Set<number>();
  readonly #nextStream: () => number;
  #hello: HelloInfo | undefined;
  #end: MillraceError | undefined;
  #used = 0;
  #wasReached = false;
  #wasUseful = false;
  #goaway: GoawayReason | undefined;
  #socketError = "";
  #heardMs = performance.now();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #resolveOpened!: (connection: this) => void;
  #resolveClosed!: (reason: MillraceError) => void;

  /** Made by `connect`, over a socket that was just made. */
  constructor(
    private readonly socket: Socket,
    private readonly options: ConnectionOptions,
  ) {
    const { openMs } = options;
    let last = 0;
    this.#nextStream = options.nextStream ?? (() => ++last);
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
    this.opened = new Promise((resolve, reject) => {
      this.#resolveOpened = resolve;
      this.closed.then(reject);
    });
    this.opened.catch(() => {});
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.#wasReached = true;
    };
    socket.onmessage = (event: { data: unknown }) => this.#receive(event.data);
    socket.onerror = (event: { message?: string }) => {
      this.#socketError = event.message ?? "";
    };
    socket.onclose = (event: { code: number; reason: string }) => this.#fail(this.#lost(event.code, event.reason));
    const silent = `the connection did not open within ${openMs} ms`;
    this.#timer = setTimeout(() => this.#fail(new MillraceError("connection_timeout", silent)), openMs);
  }

  /** What the origin said of itself. */
  get hello(): HelloInfo {
    if (!this.#hello) throw new Error("hello is read before the connection is open");
    return this.#hello;
  }

  get url(): string {
    return this.options.url;
  }

  /** Why the connection ended; undefined while it lives. */
  get ended(): MillraceError | undefined {
    return this.#end;
  }

  /** The edge took the socket: what is wrong after that lies behind it. */
  get wasReached(): boolean {
    return this.#wasReached;
  }

  /** Something of an answer came over it. */
  get wasUseful(): boolean {
    return this.#wasUseful;
  }

  /** The origin wants it to be replaced, for this reason. */
  get goaway(): GoawayReason | undefined {
    return this.#goaway;
  }

  /** Streams that still await their last message. */
  get running(): number {
    return this.#owners.size - this.#over.size;
  }

  /** Streams that it has had. */
  get used(): number {
    return this.#used;
  }

  /** Opens a stream with a START or RESUME. @returns its number. @throws MillraceError why it could not be sent. */
  join(owner: StreamOwner, message: (stream: number) => ClientMessage): number {
    if (this.#end) throw this.#end;
    const stream = this.#nextStream();
    if (stream > limits.streamNumberMax)
      throw new MillraceError("stream_reused", "all stream numbers have been used: open another connection");
    this.send(message(stream));
    this.#used++;
    this.#owners.set(stream, owner);
    return stream;
  }

  /** Nothing is sent on a connection that has ended. @throws MillraceError `frame_too_large`, before anything is sent. */
  send(message: ClientMessage): void {
    const bytes = encode(message);
    const most = this.#hello?.frameBytesMax ?? limits.frameBytesMax;
    if (bytes.length > most) {
      const why = `the message takes ${bytes.length} bytes, over the ${most} that this origin accepts: shorten the conversation`;
      throw new MillraceError("frame_too_large", why);
    }
    if (!this.#end) this.socket.send(bytes);
  }

  /** Ends the connection. Answers go on without it. */
  close(): void {
    this.#fail(new MillraceError("closed_by_caller", "the connection was closed by its owner"), 1000);
  }

  /** Ends a connection that has been silent for longer than the origin ever is: a page that slept may hold a dead one. */
  probe(): void {
    const silenceMs = performance.now() - this.#heardMs;
    if (this.#hello && silenceMs > pingEveryMs(this.#hello) + clientLimits.pingLateMs) this.#fail(dead(silenceMs));
  }

  #receive(data: unknown): void {
    if (this.#end) return;
    this.#heardMs = performance.now();
    if (data instanceof ArrayBuffer) this.#read(new Uint8Array(data));
    else this.#fail(new MillraceError("frame_not_binary", "the origin sent a text message"));
  }

  /** A frame that cannot be read ends its stream; one that belongs to no stream ends the connection. */
  #read(bytes: Uint8Array): void {
    let message: ServerMessage | undefined;
    try {
      message = decodeServerMessage(bytes);
    } catch (error) {
      const reason = error as MillraceError;
      const stream = streamOf(bytes);
      if (stream === undefined) this.#fail(reason);
      else this.#break(stream, reason);
      return;
    }
    if (!message) return;
    this.options.onMessage?.(message);
    this.#dispatch(message);
  }

  #dispatch(message: ServerMessage): void {
    const [op, stream] = message;
    if (op === Op.PING) {
      this.send([Op.PONG, 0, message[2]]);
    } else if (op === Op.ERROR && stream === 0) {
      this.#fail(new MillraceError(message[2], message[3], message[4]));
    } else if (op === Op.HELLO) {
      this.#open(message[2]);
    } else if (!this.#hello) {
      this.#fail(new MillraceError("frame_malformed", `the origin's first message is op ${op} and not HELLO`));
    } else if (op === Op.GOAWAY) {
      this.#goAway(message[3]);
    } else {
      this.#wasUseful = true;
      const owner = this.#owners.get(stream);
      if (lastOps.has(op)) this.#endStream(stream);
      owner?.hear(message);
    }
  }

  #break(stream: number, reason: MillraceError): void {
    const owner = this.#owners.get(stream);
    this.#owners.delete(stream);
    this.#over.delete(stream);
    owner?.broken(reason);
  }

  /** Its owner may still truncate the answer, and is told. */
  #endStream(stream: number): void {
    if (!this.#owners.has(stream)) return;
    this.#over.add(stream);
    for (const oldest of this.#over) {
      if (this.#over.size <= clientLimits.endedStreamsMax) break;
      this.#over.delete(oldest);
      this.#owners.delete(oldest);
    }
  }

  #goAway(reason: GoawayReason): void {
    if (this.#goaway) return;
    this.#goaway = reason;
    this.onGoaway?.(reason);
  }

  #open(hello: HelloInfo): void {
    if (this.#hello) return;
    this.#hello = hello;
    clearTimeout(this.#timer);
    this.#watch(pingEveryMs(hello));
    this.#resolveOpened(this);
  }

  /** The origin is never silent for longer than its PINGs are apart, so a socket that is has died without a word. */
  #watch(everyMs: number): void {
    this.#timer = setTimeout(() => {
      const silenceMs = performance.now() - this.#heardMs;
      if (silenceMs <= everyMs * clientLimits.silentPingsMax) return this.#watch(everyMs);
      this.#fail(dead(silenceMs));
    }, everyMs);
  }

  #lost(code: number, reason: string): MillraceError {
    const when = this.running > 0 ? " while an answer was arriving" : this.#hello ? "" : " before it was open";
    const how = reason === "" ? `close code ${code}` : `close code ${code}, ${reason}`;
    const why = this.#socketError === "" ? how : `${how}, ${this.#socketError}`;
    return new MillraceError("connection_lost", `the connection broke${when}: the network, the edge or the origin went away (${why})`);
  }

  #fail(reason: MillraceError, closeCode: number = reason.closeCode): void {
    if (this.#end) return;
    this.#end = reason;
    clearTimeout(this.#timer);
    this.socket.close(closeCode);
    this.#owners.clear();
    this.#over.clear();
    this.#resolveClosed(reason);
  }
}

const lastOps: ReadonlySet<number> = new Set([Op.DONE, Op.ERROR, Op.MISROUTED, Op.EXPIRED, Op.GONE, Op.HANDOFF]);

function pingEveryMs(hello: HelloInfo): number {
  return Math.min(Math.max(hello.pingEveryMs, clientLimits.pingEveryMsMin), clientLimits.pingEveryMsMax);
}

function dead(silenceMs: number): MillraceError {
  return new MillraceError("connection_lost", `nothing was heard for ${Math.round(silenceMs / 1_000)} s: the connection is dead`);
}
