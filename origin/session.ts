/**
 * One connection's side of `millrace.v1`. It never sees a socket: it takes bytes and gives bytes, and its caller's clock ticks it. Answers
 * are not its own: it subscribes to them, and when its socket goes they go on.
 */
import type { AssertionClaims } from "../shared/assertion.js";
import { classDelivery, mayAsk } from "../shared/classes.js";
import { decodeClientMessage, encode, streamOf } from "../shared/codec.js";
import { closeCodeOf, MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import {
  type ClientMessage,
  type GoawayReason,
  type HelloInfo,
  Op,
  type Resume,
  type ServerMessage,
  type Start,
} from "../shared/protocol.js";
import { bounds } from "./bounds.js";
import { Outbox, type SessionSocket } from "./outbox.js";
import type { Owner } from "./prepare.js";
import type { Response } from "./response.js";
import type { Epochs, Outcome, Responses } from "./responses.js";
import { StreamSubscriber } from "./streamSubscriber.js";
import type { Subscriber, Subscription } from "./subscription.js";
import { withinBytes } from "./text.js";

/** What an origin says of itself in HELLO; the session adds its own limits. */
export type OriginInfo = Pick<HelloInfo, "epoch" | "engine" | "model" | "contextTokens">;

/** A stream of this socket and what it follows. */
interface Stream {
  response: Response;
  subscription: Subscription;
}

export class Session {
  readonly #running = new Map<number, Stream>();
  /** Those that had their last message, the oldest first: they may still be truncated. */
  readonly #ended = new Map<number, Stream>();
  readonly #used = new Set<number>();
  readonly #streamsMax: number;
  readonly #owner: Owner;
  readonly #epochs: Epochs;
  readonly #outbox: Outbox;
  readonly #onStreamEnd = (stream: number): void => this.#streamEnded(stream);
  readonly #openedMs: number;
  /** When this socket ends, and why; undefined while nobody has told it to go. */
  #goaway: { reason: GoawayReason; closeMs: number; idleMs: number } | undefined;
  #tickedMs: number;
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
    this.#owner = { tenant: claims.tenant, user: claims.sub };
    this.#epochs = { dead: claims.dead };
    this.#openedMs = this.#tickedMs = this.#lastSentMs = now();
    this.#outbox = new Outbox(socket, () => this.#overflow());
  }

  open(): void {
    const { frameBytesMax, pingEveryMs, failoverWaitMs } = limits;
    const { resume: resumeToken = "", upgrade = { redeemMs: 0, chooseMs: 0, connectMs: 0 } } = this.claims;
    const own = { frameBytesMax, streamsMax: this.#streamsMax, pingEveryMs, resumeToken, failoverWaitMs, upgrade };
    this.#outbox.send([Op.HELLO, 0, { ...this.info, ...own }]);
  }

  /** Takes one WebSocket message. `bytes` may be reused by the caller once this returns. */
  receive(bytes: Uint8Array, isBinary: boolean): void {
    if (this.#outbox.isClosed) return;
    this.#pingsUnanswered = 0;
    try {
      if (!isBinary) throw new MillraceError("frame_not_binary", "a text message came, but every message of this protocol is binary");
      this.#take(decodeClientMessage(bytes));
    } catch (error) {
      this.#refuse(asMillraceError(error), bytes);
    }
  }

  /** The socket takes bytes again. */
  drained(): void {
    for (const { subscription } of this.#running.values()) subscription.flush();
  }

  /** Sends a PING where one is due, and ends what is to end. Call it about once a second. */
  tick(): void {
    if (this.#outbox.isClosed) return;
    const nowMs = this.now();
    this.#expire(nowMs);
    this.#closeWhenOver(nowMs);
    if (this.#outbox.isClosed || !this.#isSilent(nowMs)) return;
    if (this.#pingsUnanswered >= limits.pingsMissedMax) {
      this.#outbox.close();
      this.socket.close(closeCodeOf("connection_timeout"), "connection_timeout");
      return;
    }
    this.#pingsUnanswered++;
    this.#outbox.send([Op.PING, 0, this.#nonce++]);
  }

  /** Tells the client to open its next socket, and takes no START any more. It closes once its answers have ended, or at the deadline. */
  goAway(reason: GoawayReason, deadlineMs: number): void {
    if (this.#goaway || this.#outbox.isClosed) return;
    const nowMs = this.now();
    this.#goaway = { reason, closeMs: nowMs + deadlineMs, idleMs: nowMs + Math.min(deadlineMs, bounds.goawayLingerMs) };
    this.#outbox.send([Op.GOAWAY, 0, deadlineMs, reason]);
  }

  /** Ends the connection: the origin closes. */
  end(): void {
    this.#fail(new MillraceError("draining", "this origin is stopping: connect again", bounds.retryAfterMs));
  }

  /** The socket is gone; its answers go on for others, or until it is back. */
  closed(): void {
    this.#outbox.close();
    for (const { response, subscription } of [...this.#running.values(), ...this.#ended.values()]) response.unsubscribe(subscription);
    this.#running.clear();
    this.#ended.clear();
  }

  #take(message: ClientMessage): void {
    const [op, stream] = message;
    const running = this.#running.get(stream);
    const ended = this.#ended.get(stream);
    if (op === Op.START) this.#start(message);
    else if (op === Op.RESUME) this.#resume(message);
    else if (op === Op.CREDIT) running?.response.credit(running.subscription, message[2]);
    else if (op === Op.TRUNCATE) (running ?? ended)?.response.truncate(message[2]);
    else if (op === Op.CANCEL && running) running.response.cancel();
    else if (op === Op.CANCEL) ended?.response.repeatEnd(ended.subscription);
  }

  #start([, stream, messages, options]: Start): void {
    this.#use(stream);
    const { class: asked = this.claims.class } = options;
    if (!mayAsk(this.claims.class, asked))
      throw new MillraceError("field_invalid", `class is "${asked}", tighter than this session's "${this.claims.class}"`);
    if (this.#goaway) throw new MillraceError("draining", `this connection ends (${this.#goaway.reason}): ask on the next one`, 1);
    const request = { owner: this.#owner, messages, options, class: asked, tokensMax: this.claims.limits.tokensMax };
    const { flushEveryMs } = classDelivery[asked];
    this.#follow(stream, (subscriber) => this.responses.start(request, this.#epochs, subscriber, { flushEveryMs }));
  }

  #resume([, stream, epoch, response, seq, creditSeq]: Resume): void {
    this.#use(stream);
    const { flushEveryMs } = classDelivery[this.claims.class];
    const delivery = { from: seq, creditSeq, flushEveryMs, wantsIds: false };
    this.#follow(stream, (subscriber) => this.responses.resume(this.#owner, { epoch, response }, this.#epochs, subscriber, delivery));
  }

  /** @throws MillraceError `stream_reused` or `streams_exhausted`. */
  #use(stream: number): void {
    if (this.#used.has(stream)) throw new MillraceError("stream_reused", `stream ${stream} was used on this connection before`);
    if (this.#used.size >= bounds.streamsUsedMax)
      throw new MillraceError("streams_exhausted", `this connection has used ${this.#used.size} streams: open a new one`);
    this.#used.add(stream);
    if (this.#running.size >= this.#streamsMax)
      throw new MillraceError("streams_exhausted", `${this.#running.size} streams run on this connection already, the most it may have`);
  }

  #follow(stream: number, find: (subscriber: Subscriber) => Outcome): void {
    const outcome = find(new StreamSubscriber(stream, this.#outbox, this.#onStreamEnd));
    if (outcome.kind === "subscribed") this.#running.set(stream, outcome);
    else if (outcome.kind === "expired") this.#outbox.send([Op.EXPIRED, stream, outcome.seq, outcome.reason]);
    else this.#outbox.send([outcome.kind === "gone" ? Op.GONE : Op.MISROUTED, stream, outcome.epoch]);
  }

  #streamEnded(stream: number): void {
    const ended = this.#running.get(stream);
    if (!ended) return;
    this.#running.delete(stream);
    this.#ended.set(stream, ended);
    for (const [oldest, { response, subscription }] of this.#ended) {
      if (this.#ended.size <= bounds.endedStreamsMax) break;
      this.#ended.delete(oldest);
      response.unsubscribe(subscription);
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
    const running = this.#running.get(stream);
    this.#running.delete(stream);
    if (running) {
      running.response.unsubscribe(running.subscription);
      running.response.cancel();
    }
    this.#outbox.send(errorMessage(stream, error));
  }

  /** Nothing was sent for so long that the client is owed a PING; counted from the tick before what was sent last. */
  #isSilent(nowMs: number): boolean {
    if (this.#outbox.takeHasSent()) this.#lastSentMs = this.#tickedMs;
    this.#tickedMs = nowMs;
    return nowMs - this.#lastSentMs >= limits.pingEveryMs;
  }

  /** A session that has grown old is told to come back with a new ticket. */
  #expire(nowMs: number): void {
    const { sessionExp, iat } = this.claims;
    if (sessionExp === undefined || this.#goaway) return;
    // The edge's clock alone says how long the session has.
    const leftMs = 1_000 * (sessionExp - iat) - (nowMs - this.#openedMs);
    if (leftMs <= limits.sessionFarewellMs) this.goAway("session_expired", Math.max(0, leftMs));
  }

  #closeWhenOver(nowMs: number): void {
    if (!this.#goaway) return;
    const { reason, closeMs, idleMs } = this.#goaway;
    if (nowMs < (this.#running.size === 0 ? idleMs : closeMs)) return;
    if (reason === "draining") this.end();
    else this.#fail(new MillraceError("session_expired", "the session has expired: fetch a new ticket and connect again"));
  }

  #fail(error: MillraceError): void {
    if (this.#outbox.isClosed) return;
    this.#outbox.close();
    this.socket.close(error.closeCode, error.code, encode(errorMessage(0, error)));
    this.closed();
  }

  #overflow(): void {
    const why = `the client read too slowly: ${limits.outboxBytesMax} bytes waited for it`;
    this.#fail(new MillraceError("outbox_overflow", why, bounds.retryAfterMs));
  }
}

/** What is wrong with one question alone. */
const endsStream: ReadonlySet<string> = new Set([
  ...["field_invalid", "stream_reused", "streams_exhausted", "subscribers_exhausted", "key_conflict", "history_unknown"],
  ...["context_exceeded", "overloaded", "draining", "internal"],
]);

function errorMessage(stream: number, error: MillraceError): ServerMessage {
  return [Op.ERROR, stream, error.code, withinBytes(error.message, limits.errorTextBytesMax), error.retryAfterMs];
}

function asMillraceError(error: unknown): MillraceError {
  return error instanceof MillraceError ? error : new MillraceError("internal", `the origin failed on this message: ${String(error)}`);
}
