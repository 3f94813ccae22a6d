/** An edge and origin in one, on loopback, that say exactly what a test scripts: real HTTP, a real WebSocket, the protocol's own codec. */
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join } from "node:path";
import { type WebSocket, WebSocketServer } from "ws";
import { decodeClientMessage, encode } from "../../shared/codec.js";
import { Digest } from "../../shared/digest.js";
import { closeCodeOf, type ErrorCode } from "../../shared/errors.js";
import { limits } from "../../shared/limits.js";
import {
  type ChatMessage,
  type ClientMessage,
  type FinishReason,
  type HelloInfo,
  Op,
  type ServerMessage,
  type StartOptions,
  subprotocol,
  type Timings,
} from "../../shared/protocol.js";

export const hello: HelloInfo = {
  epoch: "epoch-1",
  engine: "native",
  model: "SmolLM2-135M-Instruct",
  contextTokens: 2_048,
  frameBytesMax: limits.frameBytesMax,
  streamsMax: limits.streamsMax,
  pingEveryMs: limits.pingEveryMs,
  resumeToken: "token-1",
  failoverWaitMs: limits.failoverWaitMs,
  upgrade: { redeemMs: 0.5, chooseMs: 1, connectMs: 0 },
};

/** The id of an answer's nth token. */
export const idOf = (seq: number): number => 100 + seq;

export const timings: Timings = { queueMs: 0.5, prefillMs: 2, decodeMs: 100, parkedMs: 0, outboxMs: 0.25, gapMs: 9, gapCause: "engine" };

/** One client's socket, from the origin's side. */
export class Peer {
  readonly received: ClientMessage[] = [];
  #waiting: (() => void)[] = [];

  constructor(
    readonly socket: WebSocket,
    /** The subprotocols that it offered. */
    readonly protocols: readonly string[],
    onMessage: (peer: Peer, message: ClientMessage) => void,
  ) {
    socket.on("message", (data: Buffer) => {
      const message = decodeClientMessage(data);
      this.received.push(message);
      for (const wake of this.#waiting.splice(0)) wake();
      onMessage(this, message);
    });
    socket.on("error", () => {});
  }

  send(message: ServerMessage): void {
    this.socket.send(encode(message));
  }

  raw(bytes: Uint8Array | string): void {
    this.socket.send(bytes);
  }

  hello(changes: Partial<HelloInfo> = {}): void {
    this.send([Op.HELLO, 0, { ...hello, ...changes }]);
  }

  /** As edges and origins end a connection. */
  refuse(code: ErrorCode, message = `this is ${code}`, retryAfterMs = 0): void {
    this.send([Op.ERROR, 0, code, message, retryAfterMs]);
    this.socket.close(closeCodeOf(code));
  }

  /** Resolves with the nth message of this op, from 1, past or to come. */
  async next<Message extends ClientMessage = ClientMessage>(op: Message[0], number = 1): Promise<Message> {
    for (;;) {
      const found = this.received.filter((message) => message[0] === op)[number - 1];
      if (found) return found as Message;
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  started(stream: number, droppedTurns = 0, response = `response-${stream}`): void {
    this.send([Op.STARTED, stream, response, 12, droppedTurns, { ttftMs: 2_000, itlMs: 150 }]);
  }

  /** TOKENS of these texts, one token each, from `seq` on, with the ids that every START of the SDK asks for. */
  tokens(stream: number, texts: readonly string[], seq = 1): void {
    for (const [index, text] of texts.entries()) this.send([Op.TOKENS, stream, seq + index, text, 0, [idOf(seq + index)]]);
  }

  done(stream: number, texts: readonly string[], reason: FinishReason = "stop"): void {
    const digest = new Digest();
    digest.update(new TextEncoder().encode(texts.join("")));
    const usage = { promptTokens: 12, cachedTokens: 4, completionTokens: texts.length, continuedTokens: 0 };
    const slo = { lateTokens: 0, good: true };
    this.send([Op.DONE, stream, texts.length, reason, digest.bytes, digest.value, usage, timings, slo]);
  }

  /** A whole answer at once. */
  answer(stream: number, texts: readonly string[]): void {
    this.started(stream);
    this.tokens(stream, texts);
    this.done(stream, texts);
  }
}

export interface Script {
  /** Default: says HELLO. */
  onOpen?: (peer: Peer) => void;
  onMessage?: (peer: Peer, message: ClientMessage) => void;
  /** Default: a ticket. */
  onTicket?: (request: IncomingMessage, answer: ServerResponse) => void;
  /** A folder with a page, served under the edge's own headers. */
  page?: string;
}

/** A START and who sent it. */
export interface Question {
  peer: Peer;
  stream: number;
  messages: ChatMessage[];
  options: StartOptions;
}

export class ScriptedEdge {
  readonly peers: Peer[] = [];
  script: Script;
  readonly #sockets: WebSocketServer;
  readonly #questions: Question[] = [];
  #waiting: (() => void)[] = [];

  private constructor(
    private readonly server: Server,
    script: Script,
    private readonly headers: Record<string, string>,
  ) {
    this.script = script;
    this.#sockets = new WebSocketServer({ server, path: "/v1/stream", handleProtocols: () => subprotocol });
    this.#sockets.on("connection", (socket, request) => {
      const protocols = (request.headers["sec-websocket-protocol"] ?? "").split(",").map((name) => name.trim());
      const peer = new Peer(socket, protocols, (from, message) => this.#hear(from, message));
      this.peers.push(peer);
      for (const wake of this.#waiting.splice(0)) wake();
      if (this.script.onOpen) this.script.onOpen(peer);
      else peer.hello();
    });
    server.on("request", (request, answer) => this.#serve(request, answer));
  }

  /** @param port 0 lets the system choose. */
  static async start(script: Script = {}, port = 0): Promise<ScriptedEdge> {
    const headers = script.page === undefined ? {} : readHeaders(await readFile(join(script.page, "_headers"), "utf8"));
    const server = createServer();
    const edge = new ScriptedEdge(server, script, headers);
    server.listen(port, "127.0.0.1");
    await once(server, "listening");
    return edge;
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** The last client that connected. */
  get peer(): Peer {
    const peer = this.peers.at(-1);
    if (!peer) throw new Error("nobody has connected yet");
    return peer;
  }

  /** The nth START of all, from 1, as soon as it has come. @throws after `msMax`. */
  question(number = 1, msMax = 10_000): Promise<Question> {
    return this.#nth(this.#questions, number, msMax, "questions");
  }

  /** The nth connection of all, from 1, as soon as it has come; the script has been told of it then. @throws after `msMax`. */
  connected(number: number, msMax = 10_000): Promise<Peer> {
    return this.#nth(this.peers, number, msMax, "connections");
  }

  async #nth<Item>(items: readonly Item[], number: number, msMax: number, what: string): Promise<Item> {
    const deadline = AbortSignal.timeout(msMax);
    while (items.length < number) {
      if (deadline.aborted) throw new Error(`${items.length} ${what} came within ${msMax} ms, not ${number}`);
      await Promise.race([new Promise<void>((resolve) => this.#waiting.push(resolve)), once(deadline, "abort")]);
    }
    return items[number - 1] as Item;
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets.clients) socket.terminate();
    this.server.closeAllConnections();
    await new Promise<void>((resolve) => this.server.close(() => resolve()));
  }

  #hear(peer: Peer, message: ClientMessage): void {
    if (message[0] === Op.START) this.#questions.push({ peer, stream: message[1], messages: message[2], options: message[3] });
    for (const wake of this.#waiting.splice(0)) wake();
    this.script.onMessage?.(peer, message);
  }

  async #serve(request: IncomingMessage, answer: ServerResponse): Promise<void> {
    const path = new URL(request.url ?? "/", this.url).pathname;
    if (path === "/v1/tickets") {
      if (this.script.onTicket) return this.script.onTicket(request, answer);
      answer.setHeader("content-type", "application/json");
      answer.end(JSON.stringify({ ticket: "scripted", expiresAt: 4_102_444_800, url: `ws://127.0.0.1:${this.port}/v1/stream` }));
      return;
    }
    const file = path === "/" ? "index.html" : path.slice(1);
    const bytes =
      this.script.page && !file.includes("..") ? await readFile(join(this.script.page, file)).catch(() => undefined) : undefined;
    for (const [name, value] of Object.entries(this.headers)) answer.setHeader(name, value);
    answer.setHeader("content-type", contentTypes[extname(file)] ?? "application/octet-stream");
    answer.writeHead(bytes ? 200 : 404).end(bytes);
  }
}

const contentTypes: Record<string, string> = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".svg": "image/svg+xml",
};

/** The headers of a Cloudflare `_headers` file that has one rule for every path. */
function readHeaders(file: string): Record<string, string> {
  const lines = file.split("\n").filter((line) => line.startsWith("  "));
  return Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf(":")).trim(), line.slice(line.indexOf(":") + 1).trim()]));
}
