/** How an answer is joined on a socket: where it lives, which attempt it is, and which message that takes. PROTOCOL.md, "Resuming" to "Restarting". */
import { type ChatMessage, Op, type Resume, type Start, type StartOptions } from "../shared/protocol.js";

/** One run of an origin, and what leads back to it. The token is a secret, and is renewed by each HELLO of that run. */
export interface Home {
  /** Where to open sockets. */
  url: string;
  epoch: string;
  /** Empty where nothing leads back. */
  token: string;
}

/** A question as it is asked, again if need be. */
export interface Asked {
  messages: ChatMessage[];
  options: StartOptions & { key: string; seed: number };
}

/** What of it is kept beyond the page. */
export interface KeptWhereabouts {
  attempt: number;
  home?: Home;
  id?: string;
}

export class Whereabouts {
  #attempt: number;
  #home: Home | undefined;
  #id: string | undefined;

  constructor(
    private readonly asked: Asked,
    { attempt, home, id }: KeptWhereabouts = { attempt: 1 },
  ) {
    this.#attempt = attempt;
    this.#home = home && { ...home };
    this.#id = id;
  }

  /** Counts from 1. */
  get attempt(): number {
    return this.#attempt;
  }

  /** Where this attempt was sent first; undefined before it is. */
  get home(): Home | undefined {
    return this.#home;
  }

  /** The origin's name for it, once it has been taken. */
  get id(): string | undefined {
    return this.#id;
  }

  get kept(): KeptWhereabouts {
    return {
      attempt: this.#attempt,
      ...(this.#home ? { home: { ...this.#home } } : {}),
      ...(this.#id === undefined ? {} : { id: this.#id }),
    };
  }

  /**
   * The message that joins it at `here`.
   * @param seq the last token that has come. @param ids of all tokens so far. @param creditSeq undefined: all.
   */
  join(stream: number, here: Home, seq: number, ids: readonly number[], creditSeq: number | undefined): Start | Resume {
    if (this.#home && this.#id !== undefined)
      return [Op.RESUME, stream, this.#home.epoch, this.#id, seq, creditSeq ?? Number.MAX_SAFE_INTEGER];
    const options: StartOptions = { ...this.asked.options, attempt: this.#attempt };
    if (ids.length > 0) options.continueIds = [...ids];
    if (creditSeq !== undefined) options.creditSeq = creditSeq;
    // Whether it arrived there is unknown: no other may start it while that one lives.
    if (this.#home) options.sentTo = this.#home.epoch;
    this.#home ??= here;
    return [Op.START, stream, this.asked.messages, options];
  }

  /** The origin took it, or has it. */
  taken(id: string): void {
    this.#id = id;
  }

  /** The origin refused it: nothing of this attempt is anywhere. */
  refused(): void {
    this.#home = this.#id = undefined;
  }

  /** What ran is lost, or left to itself: the next attempt begins. */
  restart(): void {
    this.#attempt++;
    this.refused();
  }
}
