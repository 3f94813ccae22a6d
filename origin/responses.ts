/**
 * The answers that live in this origin, and for a while those that ended: first with their text, then as tombstones, which only know how.
 * It decides what a START or a RESUME means here; PROTOCOL.md, "Resuming" and "Starting once".
 */
import { createHash } from "node:crypto";
import { encode } from "../shared/codec.js";
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import { type ChatMessage, Op, type StartOptions } from "../shared/protocol.js";
import { bounds } from "./bounds.js";
import type { PromptBuilder } from "./chat/prompt.js";
import type { Turnstile } from "./chat/turnstile.js";
import type { Inference } from "./inference.js";
import type { Metrics } from "./metrics.js";
import type { FrameClock } from "./pacing.js";
import type { Owner, StartRequest } from "./prepare.js";
import { Response } from "./response.js";
import type { Subscriber, Subscription, SubscriptionOptions } from "./subscription.js";
import type { ServiceTerms } from "./terms.js";
import { Tombstones } from "./tombstones.js";

/** What an answer needs of the origin around it. */
export interface Services {
  inference: Inference;
  turnstile: Turnstile;
  prompts: Pick<PromptBuilder, "build">;
  /** Whether the vocabulary has the token for other things than text, or not at all: no answer is made of it. */
  isSpecial: (token: number) => boolean;
  terms: ServiceTerms;
  metrics: Metrics;
  clock: FrameClock;
  /** Milliseconds of a monotonic clock. */
  now: () => number;
  log: (line: string) => void;
}

/** What the edge says of earlier runs. */
export interface Epochs {
  /** One that it knows is dead. */
  dead: string | undefined;
}

/** What became of a START or a RESUME. */
export type Outcome =
  | { kind: "subscribed"; response: Response; subscription: Subscription }
  | { kind: "misrouted"; epoch: string }
  | { kind: "gone"; epoch: string }
  | { kind: "expired"; seq: number; reason: string };

export class Responses {
  /** All whose text is kept, in the order in which they began; those that ended are in #kept too. */
  readonly #byId = new Map<string, Response>();
  readonly #byKey = new Map<string, Response>();
  readonly #bodies = new WeakMap<Response, string>();
  /** When they ended, in that order. */
  readonly #kept = new Map<Response, number>();
  readonly #tombstones: Tombstones;
  readonly #parked = new Map<string, number>();
  #keptBytes = 0;
  #live = 0;
  #draining = false;
  #onEmpty: (() => void) | undefined;

  /** @param epoch of this run of the origin. */
  constructor(
    private readonly services: Services,
    readonly epoch: string,
  ) {
    this.#tombstones = new Tombstones(services.now);
  }

  /** Answers that run. */
  get count(): number {
    return this.#live;
  }

  /**
   * @param after messages alone, where the options name an answer that they follow.
   * @throws MillraceError `draining`, `key_conflict`, `history_unknown`, `subscribers_exhausted`.
   */
  start(asked: StartRequest, epochs: Epochs, subscriber: Subscriber, delivery: Pick<SubscriptionOptions, "flushEveryMs">): Outcome {
    const { options, owner } = asked;
    const from = options.continueIds?.length ?? 0;
    const subscription = {
      from,
      creditSeq: options.creditSeq ?? Number.MAX_SAFE_INTEGER,
      wantsIds: options.tokenIds === true,
      ...delivery,
    };
    const body = bodyOf(asked.messages, options);
    const earlier = options.key === undefined ? undefined : this.#byKey.get(keyOf(owner, options.key));
    if (earlier) {
      if (this.#bodies.get(earlier) !== body) throw conflict(options.key as string);
      if ((options.attempt ?? 1) <= (earlier.request.options.attempt ?? 1))
        return { kind: "subscribed", response: earlier, subscription: earlier.subscribe(subscriber, subscription) };
    } else {
      const ended = options.key === undefined ? undefined : this.#tombstones.byKey(keyOf(owner, options.key));
      if (ended && ended.body !== body) throw conflict(options.key as string);
      if (ended && (options.attempt ?? 1) <= ended.attempt) return { kind: "expired", seq: ended.seq, reason: ended.reason };
    }
    if (options.sentTo !== undefined && options.sentTo !== this.epoch) return elsewhere(options.sentTo, this.epoch, epochs);
    if (this.#draining) throw new MillraceError("draining", "this origin is stopping and takes nothing new", bounds.retryAfterMs);
    const response = this.#begin({ ...asked, messages: this.#history(asked) }, body);
    earlier?.cancel();
    return { kind: "subscribed", response, subscription: response.subscribe(subscriber, subscription) };
  }

  /** @throws MillraceError `subscribers_exhausted`, or `field_invalid` for a token that has not been said. */
  resume(
    owner: Owner,
    wanted: { epoch: string; response: string },
    epochs: Epochs,
    subscriber: Subscriber,
    options: SubscriptionOptions,
  ): Outcome {
    if (wanted.epoch !== this.epoch) return elsewhere(wanted.epoch, this.epoch, epochs);
    const response = this.#byId.get(wanted.response);
    if (response && isOf(owner, response.request.owner)) {
      // Who asked for ids when it started asks for them all along.
      const wantsIds = response.request.options.tokenIds === true;
      return { kind: "subscribed", response, subscription: response.subscribe(subscriber, { ...options, wantsIds }) };
    }
    const ended = this.#tombstones.byId(wanted.response);
    if (ended && isOf(owner, ended.owner)) return { kind: "expired", seq: ended.seq, reason: ended.reason };
    return { kind: "expired", seq: 0, reason: "unknown" };
  }

  /** Ends what nobody follows and forgets what is old. Call it about once a second. */
  tick(): void {
    const nowMs = this.services.now();
    for (const response of this.#byId.values()) response.tick(nowMs);
    this.#forgetOld(nowMs);
    this.#tombstones.tick();
  }

  /** Takes nothing new and resolves once all answers have ended; what still runs after `withinMs` is handed off. */
  async drain(withinMs: number): Promise<void> {
    this.#draining = true;
    if (this.#live === 0) return;
    const cut = setTimeout(() => {
      for (const response of this.#byId.values()) if (!response.isEnded) response.handOff();
    }, withinMs);
    await new Promise<void>((resolve) => {
      this.#onEmpty = resolve;
    });
    clearTimeout(cut);
  }

  #begin(request: StartRequest, body: string): Response {
    const response = new Response(this.services, request, {
      mayPark: ({ request: { owner } }) => (this.#parked.get(owner.tenant) ?? 0) < limits.parkedOfTenantMax,
      parked: ({ request: { owner } }, isParked) => this.#countParked(owner.tenant, isParked ? 1 : -1),
      ended: (ended) => this.#ended(ended),
    });
    this.#live++;
    this.#byId.set(response.id, response);
    this.#bodies.set(response, body);
    const { owner, options } = request;
    if (options.key !== undefined) this.#byKey.set(keyOf(owner, options.key), response);
    return response;
  }

  /** The conversation that START's messages continue. @throws MillraceError `history_unknown`, `field_invalid`. */
  #history({ owner, messages, options }: StartRequest): readonly ChatMessage[] {
    if (options.after === undefined) return messages;
    const before = this.#byId.get(options.after);
    if (!before?.isEnded || !isOf(owner, before.request.owner)) {
      const how = before && isOf(owner, before.request.owner) ? "still runs" : "is not kept here";
      throw new MillraceError("history_unknown", `the answer ${options.after} ${how}: send the conversation in full`);
    }
    const all = [...before.conversation, ...messages];
    if (all.length > limits.messagesMax)
      throw new MillraceError("field_invalid", `the conversation has ${all.length} messages, over ${limits.messagesMax}`);
    return all;
  }

  #countParked(tenant: string, more: number): void {
    const count = (this.#parked.get(tenant) ?? 0) + more;
    if (count > 0) this.#parked.set(tenant, count);
    else this.#parked.delete(tenant);
  }

  #ended(response: Response): void {
    this.#live--;
    if (this.#live === 0) this.#onEmpty?.();
    // What was refused may be asked for again, by the same key.
    if (!response.wasTaken) {
      this.#unlist(response);
      return;
    }
    this.#kept.set(response, this.services.now());
    this.#keptBytes += response.bytes;
    this.#forgetOld(this.services.now());
  }

  /** Those whose time is over, and the oldest where all of them are too large. */
  #forgetOld(nowMs: number): void {
    for (const [response, endedMs] of this.#kept) {
      if (nowMs - endedMs <= bounds.logsKeptMs && this.#keptBytes <= bounds.logsKeptBytesMax) break;
      this.#forget(response);
    }
  }

  #forget(response: Response): void {
    const { seq, reason, id, request } = response;
    this.#kept.delete(response);
    this.#keptBytes -= response.bytes;
    const key = this.#unlist(response);
    const body = this.#bodies.get(response) ?? "";
    this.#tombstones.add({ id, owner: request.owner, seq, reason, key, body, attempt: request.options.attempt ?? 1 });
    response.forget();
  }

  /** @returns the key by which nobody finds it any more. */
  #unlist({ id, request: { owner, options } }: Response): string | undefined {
    const key = options.key === undefined ? undefined : keyOf(owner, options.key);
    const isLatest = key !== undefined && this.#byKey.get(key)?.id === id;
    this.#byId.delete(id);
    if (isLatest) this.#byKey.delete(key);
    return isLatest ? key : undefined;
  }
}

/** Another origin's answer: here that is known of it alone whether that origin is dead. */
function elsewhere(epoch: string, here: string, { dead }: Epochs): Outcome {
  return epoch === dead ? { kind: "gone", epoch } : { kind: "misrouted", epoch: here };
}

const keyOf = ({ tenant, user }: Owner, key: string): string => `${tenant}\0${user}\0${key}`;
const isOf = (a: Owner, b: Owner): boolean => a.tenant === b.tenant && a.user === b.user;

/** What makes two STARTs of one key the same: all but how they are delivered, and which try it is. */
function bodyOf(messages: readonly ChatMessage[], options: StartOptions): string {
  const { sentTo, attempt, continueIds, creditSeq, graceMs, key, ...same } = options;
  if (key === undefined) return "";
  const sorted = Object.fromEntries(Object.entries(same).sort(([a], [b]) => (a < b ? -1 : 1)));
  return createHash("sha256")
    .update(encode([Op.START, 1, [...messages], sorted]))
    .digest("base64");
}

function conflict(key: string): MillraceError {
  return new MillraceError("key_conflict", `the key ${JSON.stringify(key)} was used for other messages or options: choose a new one`);
}
