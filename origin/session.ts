/**
 * One connection's side of `millrace.v1`. It never sees a socket: it takes bytes and gives bytes, and its caller's clock ticks it.
 *
 *     HELLO, then per START: STARTED, any QUEUED, any TOKENS, and exactly one DONE or ERROR
 */
import type { AssertionClaims } from "../shared/assertion.js";
import { mayAsk } from "../shared/classes.js";
import { decodeClientMessage, encode, streamOf } from "../shared/codec.js";
import { closeCodeOf, MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import { type ChatMessage, type HelloInfo, Op, type ServerMessage, type StartOptions } from "../shared/protocol.js";
import { bounds } from "./bounds.js";
import type { TokenLogprobs } from "./inference.js";
import type { Response, Responses, Subscriber } from "./responses.js";

/** The one thing a session needs of a socket. */
export interface SessionSocket {
  /** False where the bytes were not taken because too many wait already; the session then ends. */
  send(bytes: Uint8Array): boolean;
  /** Sends a last message, which is always taken, and closes. The session hears `closed()`, perhaps within this call. */
  close(code: number, reason: string, last?: Uint8Array): void;
}

/** What an origin says of itself in HELLO; the session adds its own limits. */
export type OriginInfo = Pick<HelloInfo, "epoch" | "engine" | "model" | "contextTokens">;

export class Session {
  readonly #streams = new Map<number, Response>();
  readonly #used = new Set<number>();
  readonly #streamsMax: number;
  #isClosed = false;
  #isDraining = false;
  #lastSentMs: number;
  #pingsUnanswered = 0;
  #nonce = 0;

  constructor(
    private readonly socket: SessionSocket,
    private readonly claims: AssertionClaims,
    private readonly responses: Responses,
    private readonly info: OriginInfo,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.#streamsMax = Math.min(claims.limits.streamsMax, limits.streamsMax);
    this.#lastSentMs = now();
  }

  open(): void {
    const { frameBytesMax, pingEveryMs } = limits;
    this.#send([Op.HELLO, 0, { ...this.info, frameBytesMax, streamsMax: this.#streamsMax, pingEveryMs }]);
  }

  /** Takes one WebSocket message. `bytes` may be reused by the caller once this returns. */
  receive(bytes: Uint8Array, isBinary: boolean): void {
    if (this.#isClosed) return;
    this.#pingsUnanswered = 0;
    try {
      if (!isBinary) throw new MillraceError("frame_not_binary", "a text message came, but every message of this protocol is binary");
      const message = decodeClientMessage(bytes);
      if (message[0] === Op.START) this.#start(message[1], message[2], message[3]);
      else if (message[0] === Op.CANCEL) this.#streams.get(message[1])?.cancel();
    } catch (error) {
      this.#refuse(asMillraceError(error), bytes);
    }
  }

  /** Sends a PING where one is due. Call it about once a second. */
  tick(): void {
    if (this.#isClosed || this.now() - this.#lastSentMs < limits.pingEveryMs) return;
    if (this.#pingsUnanswered >= limits.pingsMissedMax) {
      this.#isClosed = true;
      this.socket.close(closeCodeOf("connection_timeout"), "connection_timeout");
      return;
    }
    this.#pingsUnanswered++;
    this.#send([Op.PING, 0, this.#nonce++]);
  }

  /** Closes once the answers that run have ended. */
  drain(): void {
    this.#isDraining = true;
    this.#closeIfDrained();
  }

  /** The socket is gone: nobody hears its answers, so they end. */
  closed(): void {
    this.#isClosed = true;
    for (const response of this.#streams.values()) response.abandon();
    this.#streams.clear();
  }

  #start(stream: number, messages: ChatMessage[], options: StartOptions): void {
    if (this.#used.has(stream)) throw new MillraceError("stream_reused", `stream ${stream} was used on this connection before`);
    if (this.#used.size >= bounds.streamsUsedMax)
      throw new MillraceError("streams_exhausted", `this connection has used ${this.#used.size} streams: open a new one`);
    this.#used.add(stream);
    if (this.#streams.size >= this.#streamsMax)
      throw new MillraceError("streams_exhausted", `${this.#streams.size} streams run on this connection already, the most it may have`);
    const { class: asked = this.claims.class } = options;
    if (!mayAsk(this.claims.class, asked))
      throw new MillraceError("field_invalid", `class is "${asked}", tighter than this session's "${this.claims.class}"`);
    const { tenant, sub: user, limits: own } = this.claims;
    const request = { messages, options, class: asked, tenant, user, tokensMax: own.tokensMax };
    this.#streams.set(stream, this.responses.start(request, this.#subscriber(stream)));
  }

  #subscriber(stream: number): Subscriber {
    return {
      started: (response, promptTokens, droppedTurns, admission) =>
        this.#send([Op.STARTED, stream, response, promptTokens, droppedTurns, admission]),
      queued: (place) => this.#send([Op.QUEUED, stream, place]),
      tokens: (seq, text, logprobs) => {
        this.#send([Op.TOKENS, stream, seq, text, 0]);
        if (logprobs) this.#sendLogprobs(stream, seq, logprobs);
      },
      done: ({ seq, reason, textBytes, digest, usage, timings }) => {
        this.#streams.delete(stream);
        this.#send([Op.DONE, stream, seq, reason, textBytes, digest, usage, timings]);
        this.#closeIfDrained();
      },
      failed: (error) => this.#endStream(stream, error),
    };
  }

  #sendLogprobs(stream: number, seq: number, tokens: readonly TokenLogprobs[]): void {
    const rows = tokens.map(({ id, logprob, top }) => [id, logprob, ...top.flatMap((each) => [each.id, each.logprob])]);
    for (let from = 0; from < rows.length; from += bounds.logprobsTokensMax) {
      const part = rows.slice(from, from + bounds.logprobsTokensMax);
      this.#send([Op.LOGPROBS, stream, seq - rows.length + from + part.length, part]);
    }
  }

  /** What was asked wrongly ends one stream; what cannot be read, or names none, ends the connection. */
  #refuse(error: MillraceError, bytes: Uint8Array): void {
    const stream = endsStream.has(error.code) ? streamOf(bytes) : undefined;
    if (stream === undefined) this.#fail(error);
    else this.#endStream(stream, error);
  }

  /** ERROR is its stream's last message: an answer that still runs under that number ends as well, and no other may take it. */
  #endStream(stream: number, error: MillraceError): void {
    if (this.#used.size < bounds.streamsUsedMax) this.#used.add(stream);
    this.#streams.get(stream)?.abandon();
    this.#streams.delete(stream);
    this.#send(errorMessage(stream, error));
    this.#closeIfDrained();
  }

  #closeIfDrained(): void {
    if (this.#isDraining && this.#streams.size === 0)
      this.#fail(new MillraceError("draining", "this origin is stopping: connect again", bounds.retryAfterMs));
  }

  #fail(error: MillraceError): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.socket.close(error.closeCode, error.code, encode(errorMessage(0, error)));
    this.closed();
  }

  #send(message: ServerMessage): void {
    if (this.#isClosed) return;
    this.#lastSentMs = this.now();
    if (this.socket.send(encode(message))) return;
    const why = `the client read too slowly: ${limits.outboxBytesMax} bytes waited for it`;
    this.#fail(new MillraceError("outbox_overflow", why, bounds.retryAfterMs));
  }
}

const endsStream: ReadonlySet<string> = new Set([
  "field_invalid",
  "stream_reused",
  "streams_exhausted",
  "context_exceeded",
  "overloaded",
  "draining",
  "internal",
]);

function errorMessage(stream: number, error: MillraceError): ServerMessage {
  return [Op.ERROR, stream, error.code, withinBytes(error.message, limits.errorTextBytesMax), error.retryAfterMs];
}

/** The text, cut at the last code point that fits. */
function withinBytes(text: string, bytesMax: number): string {
  const { read } = new TextEncoder().encodeInto(text, new Uint8Array(bytesMax));
  return read === text.length ? text : text.slice(0, read);
}

function asMillraceError(error: unknown): MillraceError {
  return error instanceof MillraceError ? error : new MillraceError("internal", `the origin failed on this message: ${String(error)}`);
}
