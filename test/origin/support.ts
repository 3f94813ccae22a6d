/** What the origin's tests share: an edge's key and its word, and a client that reads frames one by one. */
import { generateKeyPairSync, type KeyObject, randomUUID } from "node:crypto";
import { SignJWT } from "jose";
import { WebSocket } from "ws";
import { PromptBuilder } from "../../origin/chat/prompt.js";
import { Turnstile } from "../../origin/chat/turnstile.js";
import { isText } from "../../origin/chat/vocabulary.js";
import { Metrics } from "../../origin/metrics.js";
import { FrameClock } from "../../origin/pacing.js";
import { Responses } from "../../origin/responses.js";
import { SimulatedInference, type SimulatedOptions, simulatedVocabulary } from "../../origin/simulated.js";
import { ServiceTerms } from "../../origin/terms.js";
import { type AssertionClaims, assertionIssuer, assertionType } from "../../shared/assertion.js";
import { decodeServerMessage, encode } from "../../shared/codec.js";
import { Digest } from "../../shared/digest.js";
import { type ClientMessage, Op, type ServerMessage, subprotocol } from "../../shared/protocol.js";

export const edge = generateKeyPairSync("ed25519");
export const originName = "origin-test";
export const epoch = "epoch-test";
const deadlineMs = 10_000;

/** The edge's word on one user, as the Worker signs it; `changes` spoil it. */
export function claims(changes: Partial<AssertionClaims> = {}): AssertionClaims {
  const now = Math.floor(Date.now() / 1_000);
  return {
    iss: assertionIssuer,
    aud: originName,
    sub: "user-1",
    tenant: "tenant-1",
    class: "chat",
    limits: { streamsMax: 32, tokensMax: 4_096 },
    iat: now,
    exp: now + 10,
    jti: randomUUID(),
    ...changes,
  };
}

export function sign(
  payload: object,
  { key = edge.privateKey, typ = assertionType }: { key?: KeyObject; typ?: string } = {},
): Promise<string> {
  return new SignJWT({ ...payload }).setProtectedHeader({ alg: "EdDSA", typ }).sign(key);
}

/** Rejects with a sentence if the promise has not settled in time. */
export function withDeadline<Value>(promise: Promise<Value>, what: string, ms = deadlineMs): Promise<Value> {
  let timer: NodeJS.Timeout;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${ms} ms for ${what}`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

export interface Closing {
  code: number;
  reason: string;
}

/** A client's end of a connection: frames go out as they are given and come in decoded, in order. */
export abstract class TestClient {
  readonly #inbox: ServerMessage[] = [];
  #wake: (() => void) | undefined;
  #settleClosed!: (closing: Closing) => void;
  #closing: Closing | undefined;
  /** Every message received. */
  readonly received: ServerMessage[] = [];
  readonly closed = new Promise<Closing>((resolve) => {
    this.#settleClosed = resolve;
  });

  abstract sendRaw(bytes: Uint8Array | string): void;
  abstract disconnect(): void;

  send(message: ClientMessage): void {
    this.sendRaw(encode(message));
  }

  /** The next message, or the next of one stream; those of others wait their turn. */
  async next(stream?: number): Promise<ServerMessage> {
    const waited = (async () => {
      for (;;) {
        const at = this.#inbox.findIndex((message) => stream === undefined || message[1] === stream);
        if (at >= 0) return this.#inbox.splice(at, 1)[0] as ServerMessage;
        if (this.#closing) throw new Error(`the connection closed with ${this.#closing.code} ${this.#closing.reason}`);
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
    })();
    return withDeadline(waited, `a message; so far came ${JSON.stringify(this.received.slice(-5))}`);
  }

  /** The next message with this op and stream; what comes before it on that stream is passed over. */
  async nextOf<Code extends ServerMessage[0]>(op: Code, stream = 0): Promise<Extract<ServerMessage, readonly [Code, ...unknown[]]>> {
    for (;;) {
      const message = await this.next(stream);
      if (message[0] === op) return message as Extract<ServerMessage, readonly [Code, ...unknown[]]>;
    }
  }

  /** What the connection ends with: its ERROR and its close frame. */
  async end(): Promise<{ code: string; message: string; close: Closing }> {
    const [, , code, message] = await this.nextOf(Op.ERROR, 0);
    return { code, message, close: await withDeadline(this.closed, "the close frame") };
  }

  protected arrive(bytes: Uint8Array): void {
    const message = decodeServerMessage(bytes);
    if (!message) throw new Error("the origin sent an op that this version does not know");
    this.received.push(message);
    this.#inbox.push(message);
    this.#wake?.();
  }

  protected finish(closing: Closing): void {
    this.#closing ??= closing;
    this.#settleClosed(closing);
    this.#wake?.();
  }
}

/** What a client has of an answer when it comes back for the rest. */
export interface Had {
  text: string;
  seq: number;
}

/** One whole answer, checked against its own DONE. @param had what came before, on another stream. */
export async function readAnswer(
  client: TestClient,
  stream: number,
  had: Had = { text: "", seq: 0 },
): Promise<{ text: string; seq: number; reason: string; promptTokens: number }> {
  const digest = new Digest();
  digest.update(new TextEncoder().encode(had.text));
  let text = had.text;
  let last = had.seq;
  for (;;) {
    const message = await client.next(stream);
    if (message[0] === Op.ERROR) throw new Error(`stream ${stream} ended with ${message[2]}: ${message[3]}`);
    if (message[0] === Op.TOKENS) {
      if (message[2] <= last) throw new Error(`token ${message[2]} came after token ${last}`);
      last = message[2];
      text += message[3];
      digest.update(new TextEncoder().encode(message[3]));
    }
    if (message[0] === Op.DONE) {
      const [, , seq, reason, textBytes, checksum, usage] = message;
      if (textBytes !== digest.bytes || checksum !== digest.value) throw new Error(`stream ${stream}'s digest is not that of its text`);
      return { text, seq, reason, promptTokens: usage.promptTokens };
    }
  }
}

/** A real socket to a real origin. */
export class SocketClient extends TestClient {
  private constructor(private readonly socket: WebSocket) {
    super();
    socket.on("message", (data: Buffer) => this.arrive(data));
    socket.on("close", (code, reason) => this.finish({ code, reason: reason.toString() }));
    socket.on("error", () => {});
  }

  static async connect(port: number, assertion: string): Promise<SocketClient> {
    const socket = new WebSocket(`ws://127.0.0.1:${port}/v1/stream`, [subprotocol], {
      headers: { authorization: `Bearer ${assertion}` },
      perMessageDeflate: true,
    });
    const client = new SocketClient(socket);
    await withDeadline(new Promise((resolve, reject) => socket.once("open", resolve).once("error", reject)), "the socket to open");
    return client;
  }

  get extensions(): string {
    return this.socket.extensions;
  }

  sendRaw(bytes: Uint8Array | string): void {
    this.socket.send(bytes);
  }

  /** Reads nothing, so that its kernel's buffers fill up. */
  pause(): void {
    this.socket.pause();
  }

  resume(): void {
    this.socket.resume();
  }

  disconnect(): void {
    this.socket.terminate();
  }
}

/** Everything of an origin but its sockets. */
export function simulatedResponses(
  options: Partial<SimulatedOptions> = {},
  prompts?: Pick<PromptBuilder, "build">,
  now: () => number = () => performance.now(),
): { responses: Responses; inference: SimulatedInference; metrics: Metrics } {
  const all = { tokensPerSecond: 2_000, answerTokens: 40, slots: 8, contextTokens: 2_048, ...options };
  const inference = new SimulatedInference(all);
  const vocabulary = simulatedVocabulary();
  const builder = prompts ?? new PromptBuilder(vocabulary, all.contextTokens);
  const metrics = new Metrics();
  return {
    responses: new Responses(
      {
        inference,
        turnstile: new Turnstile(),
        prompts: builder,
        isSpecial: (token) => !isText(vocabulary, token),
        terms: new ServiceTerms(),
        metrics,
        clock: new FrameClock(),
        now,
        log: () => {},
      },
      epoch,
    ),
    inference,
    metrics,
  };
}
