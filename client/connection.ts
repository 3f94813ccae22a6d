/**
 * One WebSocket: it opens within a bound, answers PING, hands each message to its stream, and ends for one stated reason, which every
 * running answer is told. It never opens another: that is link.ts.
 */
import { decodeServerMessage, encode, streamOf } from "../shared/codec.js";
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import {
  type ChatMessage,
  type ClientMessage,
  type HelloInfo,
  Op,
  type ServerMessage,
  type StartOptions,
  subprotocol,
  ticketPrefix,
} from "../shared/protocol.js";
import { clientLimits } from "./limits.js";
import { Response } from "./response.js";
import { fetchTicket } from "./ticket.js";

/** The part of a WebSocket that is used: browsers' own and that of the package `ws` both have it. */
export interface Socket {
  binaryType: string;
  send(bytes: Uint8Array): void;
  close(code?: number, reason?: string): void;
  onmessage: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
}

export type SocketConstructor = new (url: string, protocols: string[]) => Socket;

export interface ConnectOptions {
  /** The edge's base URL. */
  edge: string;
  /** The customer's JWT, for an edge that takes no anonymous visitors. */
  token?: string;
  /** Where the runtime has none of its own (Node before 22): the package `ws`. */
  WebSocket?: SocketConstructor;
  /** How long the ticket, and then the socket, may take. Default limits.openMs. */
  openMs?: number;
  /** Sees every message that arrives, before it is acted upon. */
  onMessage?: (message: ServerMessage) => void;
}

/** A turn of a conversation, in the form that most APIs have. */
export interface Message {
  role: ChatMessage[0];
  content: string;
}

/**
 * Fetches a ticket, opens the socket and waits for HELLO.
 * @throws MillraceError the edge's or the origin's refusal, or `connection_lost` or `connection_timeout`.
 */
export async function connect(options: ConnectOptions): Promise<Connection> {
  const openMs = options.openMs ?? limits.openMs;
  const WebSocket = options.WebSocket ?? (globalThis as { WebSocket?: SocketConstructor }).WebSocket;
  if (!WebSocket) throw new TypeError("this runtime has no WebSocket: pass one to connect, such as that of the package ws");
  const { url, ticket } = await fetchTicket(options.edge, options.token, openMs);
  const socket = new WebSocket(url, [subprotocol, ticketPrefix + ticket]);
  return new Promise((resolve, reject) => {
    const connection = new Connection(socket, openMs, () => resolve(connection), options.onMessage);
    connection.closed.then(reject);
  });
}

export class Connection {
  /** Resolves when the connection has ended, with the reason. */
  readonly closed: Promise<MillraceError>;

  readonly #streams = new Map<number, Response>();
  #lastStream = 0;
  #hello: HelloInfo | undefined;
  #end: MillraceError | undefined;
  #socketError = "";
  #heardMs = performance.now();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #resolveClosed!: (reason: MillraceError) => void;

  /** Made by `connect`. @param onOpen called at HELLO. */
  constructor(
    private readonly socket: Socket,
    openMs: number,
    private readonly onOpen: () => void,
    private readonly onMessage?: (message: ServerMessage) => void,
  ) {
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
    socket.binaryType = "arraybuffer";
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

  /** Why the connection ended; undefined while it lives. */
  get ended(): MillraceError | undefined {
    return this.#end;
  }

  /** Asks for an answer. It never throws: what is wrong with the question, its size included, ends the answer. */
  start(messages: readonly (Message | ChatMessage)[], options: StartOptions = {}): Response {
    const stream = ++this.#lastStream;
    const response = new Response(() => this.#send([Op.CANCEL, stream]));
    const pairs = messages.map((message): ChatMessage => ("role" in message ? [message.role, message.content] : message));
    try {
      if (this.#end) throw this.#end;
      if (stream > limits.streamNumberMax)
        throw new MillraceError("stream_reused", "this connection has used all its stream numbers: open another");
      this.#send([Op.START, stream, pairs, options]);
      this.#streams.set(stream, response);
    } catch (error) {
      response.fail(error instanceof MillraceError ? error : new MillraceError("field_invalid", String(error)));
    }
    return response;
  }

  /** Ends the connection and every answer that still runs on it. */
  close(): void {
    this.#fail(new MillraceError("closed_by_caller", "the connection was closed by its owner"), 1000);
  }

  /** @throws MillraceError `frame_too_large`, before anything is sent. */
  #send(message: ClientMessage): void {
    const bytes = encode(message);
    const most = this.#hello?.frameBytesMax ?? limits.frameBytesMax;
    if (bytes.length > most) {
      const why = `the message takes ${bytes.length} bytes, over the ${most} that this origin accepts: shorten the conversation`;
      throw new MillraceError("frame_too_large", why);
    }
    if (!this.#end) this.socket.send(bytes);
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
      else this.#drop(stream, reason);
      return;
    }
    if (!message) return;
    this.onMessage?.(message);
    this.#dispatch(message);
  }

  #dispatch(message: ServerMessage): void {
    const [op, stream] = message;
    if (op === Op.PING) {
      this.#send([Op.PONG, 0, message[2]]);
    } else if (op === Op.ERROR && stream === 0) {
      this.#fail(new MillraceError(message[2], message[3], message[4]));
    } else if (op === Op.HELLO) {
      this.#open(message[2]);
    } else if (!this.#hello) {
      this.#fail(new MillraceError("frame_malformed", `the origin's first message is op ${op} and not HELLO`));
    } else {
      const response = this.#streams.get(stream);
      response?.apply(message);
      if (response?.ended) this.#streams.delete(stream);
    }
  }

  /** Ends an answer that can no longer be trusted, and frees its slot. */
  #drop(stream: number, reason: MillraceError): void {
    const response = this.#streams.get(stream);
    if (!response) return;
    this.#streams.delete(stream);
    response.fail(reason);
    this.#send([Op.CANCEL, stream]);
  }

  #open(hello: HelloInfo): void {
    if (this.#hello) return;
    this.#hello = hello;
    clearTimeout(this.#timer);
    const every = Math.min(Math.max(hello.pingEveryMs, clientLimits.pingEveryMsMin), clientLimits.pingEveryMsMax);
    this.#watch(every, every * clientLimits.silentPingsMax);
    this.onOpen();
  }

  /** The origin is never silent for longer than its PINGs are apart, so a socket that is has died without a word. */
  #watch(everyMs: number, silenceMsMax: number): void {
    this.#timer = setTimeout(() => {
      const silenceMs = performance.now() - this.#heardMs;
      if (silenceMs <= silenceMsMax) return this.#watch(everyMs, silenceMsMax);
      this.#fail(new MillraceError("connection_lost", `nothing was heard for ${Math.round(silenceMs / 1_000)} s: the connection is dead`));
    }, everyMs);
  }

  #lost(code: number, reason: string): MillraceError {
    const when = this.#streams.size > 0 ? " while the answer was arriving" : this.#hello ? "" : " before it was open";
    const how = reason === "" ? `close code ${code}` : `close code ${code}, ${reason}`;
    const why = this.#socketError === "" ? how : `${how}, ${this.#socketError}`;
    return new MillraceError("connection_lost", `the connection broke${when}: the network, the edge or the origin went away (${why})`);
  }

  #fail(reason: MillraceError, closeCode: number = reason.closeCode): void {
    if (this.#end) return;
    this.#end = reason;
    clearTimeout(this.#timer);
    this.socket.close(closeCode);
    for (const response of this.#streams.values()) response.fail(reason);
    this.#streams.clear();
    this.#resolveClosed(reason);
  }
}
