/**
 * What ties an answer to its origin: one stream at a time, over as many sockets, origins and attempts as it takes. It decides with which
 * message the answer is joined and what each message means for it; whoever keeps the connections (Keeper) finds it the next one.
 */
import { MillraceError } from "../shared/errors.js";
import {
  type ClientMessage,
  type Done,
  type ErrorMessage,
  type Expired,
  Op,
  type Resumed,
  type ServerMessage,
  type Started,
} from "../shared/protocol.js";
import { type Asked, type Home, type KeptWhereabouts, Whereabouts } from "./attach.js";
import type { Connection, StreamOwner } from "./connection.js";
import type { Transcript } from "./transcript.js";

/**
 * Why an answer has no stream any more: nothing more is to come; its origin is dead; it lives at another; its origin wants it continued
 * elsewhere; or the origin did not take it, for this error.
 */
export type Leave = "over" | "gone" | "misrouted" | "handed_off" | MillraceError;

/** Whoever finds connections for an answer. */
export interface Keeper {
  left(tether: Tether, how: Leave): void;
  /** It has something to say to its origin, and no stream to say it on. */
  rejoin(tether: Tether): void;
}

/** What its reader is told. */
export interface TetherEvents {
  /** An attempt was sent for the first time. */
  sent(): void;
  taken(said: Started | Resumed): void;
  queued(place: number): void;
  /** Tokens have come. */
  grew(): void;
  truncated(textBytes: number): void;
  /** One of these ends it. */
  done(message: Done): void;
  failed(error: MillraceError): void;
  /** It was stopped where no origin has it that could say DONE. */
  stopped(): void;
}

export class Tether implements StreamOwner {
  readonly #where: Whereabouts;
  /** The stream that it has, or had last: an answer may be truncated after its end. */
  #joined: { connection: Connection; stream: number } | undefined;
  /** Neither taken nor refused yet. */
  #isAsking = false;
  #awaySinceMs: number | undefined = performance.now();
  #refusals = 0;
  #strays = 0;
  #strayedMs: number | undefined;
  #isCancelled = false;
  #heardBytes: number | undefined;
  /** Its last message has come, or none will. */
  #hasEnded = false;

  /** @param creditSeq the credit that a START or RESUME is to carry; undefined: all. */
  constructor(
    private readonly asked: Asked,
    private readonly transcript: Transcript,
    private readonly creditSeq: () => number | undefined,
    private readonly events: TetherEvents,
    private readonly keeper: Keeper,
    kept?: KeptWhereabouts,
  ) {
    this.#where = new Whereabouts(asked, kept);
  }

  get attempt(): number {
    return this.#where.attempt;
  }

  get home(): Home | undefined {
    return this.#where.home;
  }

  get id(): string | undefined {
    return this.#where.id;
  }

  get kept(): KeptWhereabouts {
    return this.#where.kept;
  }

  get hasEnded(): boolean {
    return this.#hasEnded;
  }

  /** Some origin took it once: it is not given up because one refuses it now. */
  get wasTaken(): boolean {
    return this.#where.attempt > 1 || this.#where.id !== undefined;
  }

  /** How long no origin has known of it, in milliseconds. */
  awayMs(nowMs: number = performance.now()): number {
    return this.#awaySinceMs === undefined ? 0 : nowMs - this.#awaySinceMs;
  }

  /** Joins it on an open connection, with whatever it has to say. */
  join(connection: Connection, here: Home): void {
    const isNew = this.#where.home === undefined;
    const { seq, ids = [] } = this.transcript;
    try {
      const stream = connection.join(this, (number) => this.#where.join(number, here, seq, ids, this.creditSeq()));
      this.#joined = { connection, stream };
    } catch (error) {
      this.fail(error instanceof MillraceError ? error : new MillraceError("field_invalid", String(error)));
      return;
    }
    this.#isAsking = true;
    if (isNew) this.events.sent();
    if (this.#heardBytes !== undefined) this.#say((stream) => [Op.TRUNCATE, stream, this.#heardBytes as number]);
    if (this.#isCancelled) this.#say((stream) => [Op.CANCEL, stream]);
  }

  /** Its connection has ended. */
  lost(): void {
    this.#depart();
  }

  /** Makes ready for the next attempt. @returns whether there is one; where there is not it has ended. */
  restart(): boolean {
    const { seq, ids } = this.transcript;
    if (this.#hasEnded) this.#over();
    else if (this.#isCancelled) this.#stop();
    else if (seq > 0 && !ids) this.fail(unrepeatable("its tokens came without the ids with which another could continue it"));
    else if (seq > 0 && this.asked.options.format) this.fail(unrepeatable("an answer of a format cannot be continued by another"));
    else {
      this.#where.restart();
      return true;
    }
    return false;
  }

  /** It was refused. A START then may be sent anywhere, as if for the first time. @returns how often, since it was taken last. */
  refused(): { times: number } {
    if (this.#where.id === undefined) this.#where.refused();
    return { times: ++this.#refusals };
  }

  /** It was asked for where it does not live. @returns how often, since it was taken last, and for how long in milliseconds. */
  strayed(): { times: number; sinceMs: number } {
    this.#strayedMs ??= performance.now();
    return { times: ++this.#strays, sinceMs: performance.now() - this.#strayedMs };
  }

  credit(seqMax: number): void {
    this.#say((stream) => [Op.CREDIT, stream, seqMax]);
  }

  /** Asks for the end, now or as soon as there is a connection. @returns whether an origin is to confirm it; else it has ended. */
  cancel(): boolean {
    this.#isCancelled = true;
    if (!this.#where.home) this.#stop();
    else this.#say((stream) => [Op.CANCEL, stream]);
    return !this.#hasEnded;
  }

  /** The user heard so many bytes of its text. */
  truncate(textBytes: number): void {
    this.#heardBytes = Math.min(textBytes, this.#heardBytes ?? textBytes);
    if (!this.#where.home) this.cancel();
    else if (!this.#say((stream) => [Op.TRUNCATE, stream, textBytes]) && this.#hasEnded) this.keeper.rejoin(this);
  }

  /** Ends it for a reason of the client's. */
  fail(error: MillraceError): void {
    if (!this.#hasEnded) {
      this.#hasEnded = true;
      this.events.failed(error);
    }
    this.#over();
  }

  /** What follows cannot be trusted, and nobody reads it. */
  broken(reason: MillraceError): void {
    this.#say((stream) => [Op.CANCEL, stream]);
    this.fail(reason);
  }

  hear(message: ServerMessage): void {
    if (message[1] !== this.#joined?.stream) return;
    if (message[0] !== Op.TOKENS && message[0] !== Op.LOGPROBS && this.transcript.settle()) this.events.grew();
    switch (message[0]) {
      case Op.TOKENS:
      case Op.LOGPROBS:
        if (this.transcript.take(message)) this.events.grew();
        break;
      case Op.STARTED:
      case Op.RESUMED:
        this.#taken(message);
        break;
      case Op.QUEUED:
        this.events.queued(message[2]);
        break;
      case Op.TRUNCATED:
        this.#truncated(message[3]);
        break;
      case Op.DONE:
        this.#done(message);
        break;
      case Op.ERROR:
        this.#error(message);
        break;
      case Op.EXPIRED:
        this.#expired(message);
        break;
      case Op.GONE:
        this.#leave("gone");
        break;
      case Op.MISROUTED:
        this.#leave("misrouted");
        break;
      case Op.HANDOFF:
        this.#leave("handed_off");
    }
  }

  #taken(message: Started | Resumed): void {
    this.#where.taken(message[2]);
    this.#isAsking = false;
    this.#awaySinceMs = this.#strayedMs = undefined;
    this.#refusals = this.#strays = 0;
    this.events.taken(message);
  }

  #truncated(textBytes: number): void {
    if (this.#heardBytes !== undefined && textBytes <= this.#heardBytes) this.#heardBytes = undefined;
    this.events.truncated(textBytes);
  }

  #done(message: Done): void {
    if (!this.#hasEnded) {
      this.#hasEnded = true;
      this.events.done(message);
    }
    this.#over();
  }

  /** Before it is taken, an ERROR refuses it, which need not be the end. */
  #error([, , code, sentence, retryAfterMs]: ErrorMessage): void {
    const error = new MillraceError(code, sentence, retryAfterMs);
    if (this.#isAsking) this.#leave(error);
    else this.fail(error);
  }

  #expired([, , seq, reason]: Expired): void {
    if (this.#isCancelled || this.#hasEnded) {
      this.#stop();
      return;
    }
    const had = `${this.transcript.seq} of its tokens had come`;
    const why =
      reason === "unknown"
        ? `the origin does not know the answer any more: ${had}`
        : `the answer ended (${reason}) at token ${seq} while there was no connection, and its text is not kept any more: ${had}`;
    this.fail(new MillraceError("connection_lost", `${why}; ask again`));
  }

  #leave(how: Exclude<Leave, "over">): void {
    this.#depart();
    // Only an origin that has it can still be told anything.
    if (how === "misrouted" || !(this.#hasEnded || this.#isCancelled)) this.keeper.left(this, how);
    else if (this.#hasEnded) this.#over();
    else this.#stop();
  }

  #depart(): void {
    this.#joined = undefined;
    this.#isAsking = false;
    this.#awaySinceMs ??= performance.now();
    this.transcript.drop();
  }

  /** Nothing runs that could confirm the stop. */
  #stop(): void {
    if (!this.#hasEnded) {
      this.#hasEnded = true;
      this.events.stopped();
    }
    this.#over();
  }

  #over(): void {
    this.#isAsking = false;
    this.keeper.left(this, "over");
  }

  /** @returns whether there is a stream to say it on. */
  #say(message: (stream: number) => ClientMessage): boolean {
    if (!this.#joined || this.#joined.connection.ended) return false;
    this.#joined.connection.send(message(this.#joined.stream));
    return true;
  }
}

function unrepeatable(why: string): MillraceError {
  return new MillraceError("connection_lost", `the origin of the answer is gone, and ${why}: ask again`);
}
