/** A subscriber as one stream of a socket: what it is told, as messages. */
import type { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import { type Admission, Op, type ServerMessage } from "../shared/protocol.js";
import { bounds } from "./bounds.js";
import type { TokenLogprobs } from "./inference.js";
import type { Outbox } from "./outbox.js";
import type { Ending } from "./response.js";
import type { Subscriber } from "./subscription.js";
import { withinBytes } from "./text.js";

export class StreamSubscriber implements Subscriber {
  /** @param onEnd is called once the stream has had its last message. */
  constructor(
    private readonly stream: number,
    private readonly outbox: Outbox,
    private readonly onEnd: (stream: number) => void,
  ) {}

  started(response: string, promptTokens: number, droppedTurns: number, admission: Admission): void {
    this.outbox.send([Op.STARTED, this.stream, response, promptTokens, droppedTurns, admission]);
  }

  resumed(response: string, seq: number, promptTokens: number, droppedTurns: number): void {
    this.outbox.send([Op.RESUMED, this.stream, response, seq, promptTokens, droppedTurns]);
  }

  queued(place: number): void {
    this.outbox.send([Op.QUEUED, this.stream, place]);
  }

  tokens(seq: number, text: string, flags: number, ids?: readonly number[], logprobs?: readonly TokenLogprobs[]): void {
    if (ids) this.outbox.send([Op.TOKENS, this.stream, seq, text, flags, ids]);
    else this.outbox.sendTokens(this.stream, seq, text, flags);
    if (logprobs && logprobs.length > 0) this.#sendLogprobs(seq, logprobs);
  }

  truncated(seq: number, textBytes: number): void {
    this.outbox.send([Op.TRUNCATED, this.stream, seq, textBytes]);
  }

  done({ seq, reason, textBytes, digest, usage, timings, slo }: Ending): void {
    this.#last([Op.DONE, this.stream, seq, reason, textBytes, digest, usage, timings, slo]);
  }

  failed({ code, message, retryAfterMs }: MillraceError): void {
    this.#last([Op.ERROR, this.stream, code, withinBytes(message, limits.errorTextBytesMax), retryAfterMs]);
  }

  handedOff(seq: number): void {
    this.#last([Op.HANDOFF, this.stream, seq]);
  }

  isFull(): boolean {
    return this.outbox.isFull;
  }

  #last(message: ServerMessage): void {
    this.outbox.send(message);
    this.onEnd(this.stream);
  }

  #sendLogprobs(seq: number, tokens: readonly TokenLogprobs[]): void {
    const rows = tokens.map(({ id, logprob, top }) => [id, logprob, ...top.flatMap((each) => [each.id, each.logprob])]);
    for (let from = 0; from < rows.length; from += bounds.logprobsTokensMax) {
      const part = rows.slice(from, from + bounds.logprobsTokensMax);
      this.outbox.send([Op.LOGPROBS, this.stream, seq - rows.length + from + part.length, part]);
    }
  }
}
