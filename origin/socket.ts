/**
 * The seam to uWebSockets.js, which nobody else imports. Requests are valid only until their handler returns and messages only until
 * theirs does, so all that is needed is copied or used at once; a socket's methods throw once it is closed, so each has a state.
 */

import uws, { type HttpRequest, type HttpResponse, type us_listen_socket, type us_socket_context_t, type WebSocket } from "uWebSockets.js";
import { STATUS_CODES } from "node:http";
import { setTimeout } from "node:timers/promises";
import { limits } from "../shared/limits.js";
import { subprotocol } from "../shared/protocol.js";
import { bounds } from "./bounds.js";
import type { HttpAnswer, HttpRoutes } from "./http.js";
import type { SessionSocket } from "./outbox.js";

/** The headers of an upgrade that decide on it. */
export interface UpgradeRequest {
  authorization: string;
  /** As offered, e.g. "millrace.v1". */
  subprotocols: string;
}

/** What a connection does; `Session` has this shape. */
export interface Connection {
  open(): void;
  receive(bytes: Uint8Array, isBinary: boolean): void;
  /** What waited for the client has gone. */
  drained(): void;
  closed(): void;
}

export interface ServerHandlers {
  /** Decides on an upgrade, synchronously: who comes in, or what is answered instead. */
  admit(request: UpgradeRequest): { connect: (socket: SessionSocket) => Connection } | { refuse: HttpAnswer };
  http: HttpRoutes;
}

export interface Server {
  /** The port it listens on. */
  readonly port: number;
  readonly sockets: Sockets;
  /** Stops listening, gives closing sockets time to send what waits in them, and closes what is left. */
  close(): Promise<void>;
}

export interface Sockets {
  /** Those that still send what waited when they were closed count as open. */
  open: number;
  backpressured: number;
}

/** What uWebSockets.js keeps for us of each WebSocket. */
interface SocketData {
  connect: (socket: SessionSocket) => Connection;
  /** Once it is open. */
  socket: UwsSocket | undefined;
}

/** LIBUS_LISTEN_EXCLUSIVE_PORT: a second origin on one port shall fail, not share its connections. */
const exclusivePort = 1;

/** @param port 0 lets the system choose. Resolves to undefined where the port cannot be had. */
export function listen(host: string, port: number, handlers: ServerHandlers): Promise<Server | undefined> {
  const sockets: Sockets = { open: 0, backpressured: 0 };
  let onEmpty: (() => void) | undefined;
  const app = uws.App();
  app.ws<SocketData>("/v1/stream", {
    compression: uws.DISABLED,
    maxPayloadLength: limits.frameBytesMax,
    maxBackpressure: limits.outboxBytesMax,
    closeOnBackpressureLimit: 1,
    idleTimeout: bounds.idleTimeoutS,
    sendPingsAutomatically: false,
    upgrade: (res, req, context) => upgrade(handlers, res, req, context),
    open: (ws) => {
      const data = ws.getUserData();
      sockets.open++;
      data.socket = new UwsSocket(ws, sockets);
      data.socket.connect(data.connect);
    },
    message: (ws, message, isBinary) => ws.getUserData().socket?.connection?.receive(new Uint8Array(message), isBinary),
    drain: (ws) => ws.getUserData().socket?.drained(),
    close: (ws) => {
      sockets.open--;
      ws.getUserData().socket?.closed();
      if (sockets.open === 0) onEmpty?.();
    },
  });
  app.any("/*", (res, req) => answer(res, handlers.http(req.getMethod(), req.getUrl())));
  const close = async (token: us_listen_socket): Promise<void> => {
    uws.us_listen_socket_close(token);
    if (sockets.open > 0)
      await Promise.race([new Promise<void>((resolve) => (onEmpty = resolve)), setTimeout(bounds.farewellMs, undefined, { ref: false })]);
    app.close();
  };
  return new Promise((resolve) => {
    const onListen = (token: us_listen_socket | false): void => {
      if (!token) resolve(undefined);
      else resolve({ port: uws.us_socket_local_port(token), sockets, close: () => close(token) });
    };
    // The types lack this form of it.
    const listenOn = app.listen as unknown as (host: string, port: number, options: number, cb: typeof onListen) => unknown;
    listenOn.call(app, host, port, exclusivePort, onListen);
  });
}

/** No await in here: neither `res` nor `req` survives one. */
function upgrade(handlers: ServerHandlers, res: HttpResponse, req: HttpRequest, context: us_socket_context_t): void {
  const admission = handlers.admit({
    authorization: req.getHeader("authorization"),
    subprotocols: req.getHeader("sec-websocket-protocol"),
  });
  if ("refuse" in admission) {
    write(res, admission.refuse);
    return;
  }
  const data: SocketData = { connect: admission.connect, socket: undefined };
  // No extensions are handed on: none is negotiated.
  res.upgrade(data, req.getHeader("sec-websocket-key"), subprotocol, "", context);
}

function answer(res: HttpResponse, reply: HttpAnswer | Promise<HttpAnswer>): void {
  if (!(reply instanceof Promise)) {
    write(res, reply);
    return;
  }
  let isAborted = false;
  res.onAborted(() => {
    isAborted = true;
  });
  const later = (ready: HttpAnswer): void => {
    if (!isAborted) res.cork(() => write(res, ready));
  };
  const failed = { status: 500, type: "text/plain", body: "", retryAfterMs: 0 };
  reply.then(later, (error: unknown) => later({ ...failed, body: `${String(error)}\n` }));
}

function write(res: HttpResponse, { status, type, body, retryAfterMs }: HttpAnswer): void {
  res
    .writeStatus(`${status} ${STATUS_CODES[status] ?? ""}`)
    .writeHeader("content-type", type)
    .writeHeader("cache-control", "no-store");
  if (retryAfterMs > 0) res.writeHeader("retry-after", String(Math.ceil(retryAfterMs / 1_000)));
  res.end(body);
}

/** One WebSocket that is open, or was. */
class UwsSocket implements SessionSocket {
  #connection: Connection | undefined;
  #isOpen = true;
  /** Bytes wait in user space since a send built up backpressure; `drained` clears it. */
  #isBackpressured = false;
  /** Closing: nothing more is sent, and the close frame follows once what waits has gone. */
  #ending: { code: number; reason: string; deadline: NodeJS.Timeout } | undefined;

  constructor(
    private readonly ws: WebSocket<SocketData>,
    private readonly sockets: Sockets,
  ) {}

  get connection(): Connection | undefined {
    return this.#connection;
  }

  connect(make: (socket: SessionSocket) => Connection): void {
    this.#connection = make(this);
    this.#connection.open();
  }

  send(bytes: Uint8Array): boolean {
    if (!this.#isOpen || this.#ending) return true;
    // Nothing waits in user space unless a send said so.
    const waiting = this.#isBackpressured ? this.ws.getBufferedAmount() : 0;
    if (waiting + bytes.length > limits.outboxBytesMax - bounds.farewellBytes) return false;
    return this.#write(bytes);
  }

  isFull(): boolean {
    return this.#isBackpressured;
  }

  /** What waits goes first: `end` at once, from within one of uWebSockets.js' handlers, would cut it off. */
  close(code: number, reason: string, last?: Uint8Array): void {
    if (!this.#isOpen || this.#ending) return;
    if (last) this.#write(last);
    if (!this.#isOpen) return;
    if (this.ws.getBufferedAmount() === 0) {
      this.ws.end(code, reason);
      return;
    }
    const deadline = globalThis.setTimeout(() => this.ws.end(code, reason), bounds.farewellMs);
    this.#ending = { code, reason, deadline };
  }

  /** uWebSockets.js has sent some of what waited. */
  drained(): void {
    this.#setBackpressured(this.ws.getBufferedAmount() > 0);
    if (this.#isBackpressured) return;
    if (this.#ending) this.ws.end(this.#ending.code, this.#ending.reason);
    else this.#connection?.drained();
  }

  closed(): void {
    this.#isOpen = false;
    this.#setBackpressured(false);
    clearTimeout(this.#ending?.deadline);
    this.#connection?.closed();
  }

  #write(bytes: Uint8Array): boolean {
    const sent = this.ws.send(bytes, true, false);
    // 1: with the kernel. 0: waits here, in order. 2: dropped, after which nothing may follow, or it would become a hole.
    if (sent === 0) this.#setBackpressured(true);
    return sent !== 2;
  }

  #setBackpressured(isBackpressured: boolean): void {
    if (this.#isBackpressured === isBackpressured) return;
    this.#isBackpressured = isBackpressured;
    this.sockets.backpressured += isBackpressured ? 1 : -1;
  }
}
