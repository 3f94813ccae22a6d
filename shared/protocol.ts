/**
 * The messages of `millrace.v1`; PROTOCOL.md is their specification. A message is one MessagePack array whose first element is the
 * op and whose second is the stream (0: the connection itself). On the token path there are no maps.
 */
import type { ClassName } from "./classes.js";
import type { ErrorCode } from "./errors.js";

/** The WebSocket subprotocol that names the version. */
export const subprotocol = "millrace.v1";
/** The second subprotocol a browser offers: it carries the ticket, since a page cannot set headers and URLs are logged. */
export const ticketPrefix = "ticket.";
/** In the ticket's place on later sockets: the session's resume token. */
export const resumePrefix = "resume.";
/** A third subprotocol, which asks for another origin than the session's own. */
export const elsewhere = "elsewhere";

/** Ops below 32 go from the origin to the client, ops from 32 on the other way. */
export const Op = {
  HELLO: 1,
  STARTED: 2,
  QUEUED: 3,
  TOKENS: 4,
  DONE: 5,
  ERROR: 6,
  PING: 7,
  RESUMED: 8,
  MISROUTED: 9,
  EXPIRED: 10,
  GONE: 11,
  TRUNCATED: 12,
  GOAWAY: 13,
  HANDOFF: 14,
  LOGPROBS: 15,
  START: 32,
  CANCEL: 33,
  PONG: 34,
  RESUME: 35,
  CREDIT: 36,
  TRUNCATE: 37,
} as const;

/** What a TOKENS may say beside its text; `flags` is a sum of these. */
export const TokenFlag = {
  /** The text before this TOKENS ends a sentence. */
  sentenceEnded: 1,
} as const;

/** What the edge took of the upgrade, in milliseconds of its own clock. */
export interface UpgradeTimings {
  /** To check the ticket or resume token. */
  redeemMs: number;
  /** To choose an origin. */
  chooseMs: number;
  /** For origins that did not take the socket before this one did. */
  connectMs: number;
}

export interface HelloInfo {
  /** Names this run of the origin: a new process is a new epoch. */
  epoch: string;
  /** `simulated` is never the default, and whoever shows an answer must say so. */
  engine: "native" | "simulated";
  model: string;
  contextTokens: number;
  frameBytesMax: number;
  streamsMax: number;
  pingEveryMs: number;
  /** Opens the session's next sockets; empty where they cannot be resumed. */
  resumeToken: string;
  /** How long an origin that cannot be reached is tried before answers are restarted elsewhere. */
  failoverWaitMs: number;
  upgrade: UpgradeTimings;
}

export type Role = "system" | "user" | "assistant";
export type ChatMessage = readonly [role: Role, content: string];

/** JSON by a schema, text that a regular expression matches as a whole, or a grammar in GBNF whose first rule is `root`. */
export interface Format {
  kind: (typeof formatKinds)[number];
  text: string;
}
export const formatKinds = ["json_schema", "regex", "grammar"] as const;

/** What a START may ask; each field is optional, and one that is not listed here is refused. */
export interface StartOptions {
  /** Most tokens to sample, 1 or more. Without it: what the context has room for. */
  maxTokens?: number;
  /** 0 is greedy. 0 to 10. */
  temperature?: number;
  /** Keep the k likeliest tokens; 0 keeps all. */
  topK?: number;
  /** Keep the fewest likeliest tokens whose probabilities reach p; 0 to 1. */
  topP?: number;
  /** Keep the tokens at least this fraction as likely as the likeliest; 0 to 1. */
  minP?: number;
  /** Divides the positive and multiplies the negative logits of tokens already seen (Keskar et al. 2019); 0.1 to 10, 1 is off. */
  repetitionPenalty?: number;
  /** Subtracted once from the logit of a token generated before; -10 to 10. */
  presencePenalty?: number;
  /** Subtracted for each time the token was generated; -10 to 10. */
  frequencyPenalty?: number;
  /** The same seed and request give the same text. Without it the origin draws one. 0 to 2^53 - 1. */
  seed?: number;
  /** The answer ends before the first of these; they may span tokens. */
  stop?: string[];
  /** No end-of-turn token is sampled before so many others, and no stop string found in their text. */
  minTokens?: number;
  /** The answer goes on past the model's end-of-turn token. */
  ignoreEos?: boolean;
  /** Added to the logits of these token ids, before penalties: at most 1,024, each -100 to 100. */
  logitBias?: Record<string, number>;
  /** LOGPROBS tells each token's log-probability and those of so many likeliest, 0 to 20. */
  logprobs?: number;
  /** What the answer must be; it alone then says where the answer may end, so not with minTokens or ignoreEos. */
  format?: Format;
  class?: ClassName;
  /** Deadlines other than the class's, within what the origin's classes span: the first token's, and the time between later ones. */
  ttftMs?: number;
  itlMs?: number;
  /** How long it would rather wait for a promise than be refused. */
  waitMs?: number;
  /** What to do with a conversation longer than the context: refuse it (the default), or drop its oldest turns, whole. */
  overflow?: "refuse" | "drop_oldest";
  /** Continues the conversation of this answer, as far as that is not truncated: `messages` are then those that follow it. */
  after?: string;
  /** Makes the START idempotent for its tenant and user. */
  key?: string;
  /** Of one key: a higher one replaces a lower one. Default 1. */
  attempt?: number;
  /** Sent again: the epoch to which it was first sent, since no other may start it as long as that lives. */
  sentTo?: string;
  /** TOKENS brings token ids. */
  tokenIds?: boolean;
  /** A restart: the ids of all tokens that came before; they count as generated. */
  continueIds?: number[];
  /** The highest seq the client is ready to take. Default: all. */
  creditSeq?: number;
  /** How long it goes on while nobody is subscribed. Default, and at most: the class's. */
  graceMs?: number;
}

/** Why an answer ended: a stop string or end-of-turn token, its token limit or the context's end, or a CANCEL. */
export const finishReasons = ["stop", "length", "cancelled"] as const;
export type FinishReason = (typeof finishReasons)[number];

/** Tokens of a finished answer. */
export interface Usage {
  promptTokens: number;
  /** Of the prompt's, those whose keys and values were in memory already: not computed anew. */
  cachedTokens: number;
  /** Sampled tokens; the last `seq`. */
  completionTokens: number;
  /** Of these, brought by `continueIds`. */
  continuedTokens: number;
}

/** What the longest wait between two tokens is owed to. */
export const gapCauses = ["engine", "parked", "outbox"] as const;
export type GapCause = (typeof gapCauses)[number];

/** Durations on the origin's monotonic clock, in milliseconds. */
export interface Timings {
  /** START received until the engine began on the prompt. */
  queueMs: number;
  /** The prompt's computation, until the first token. */
  prefillMs: number;
  /** First token to last. */
  decodeMs: number;
  /** Without credit, in between. */
  parkedMs: number;
  /** The longest that a token waited to be sent to this subscriber. */
  outboxMs: number;
  /** The longest wait between two tokens, and what it is owed to. */
  gapMs: number;
  gapCause: GapCause;
}

/** Whether the promise was kept. */
export interface Slo {
  /** Tokens that came after they were due. */
  lateTokens: number;
  /** The first token and 99 of 100 were on time. */
  good: boolean;
}

export const goawayReasons = ["draining", "session_expired"] as const;
export type GoawayReason = (typeof goawayReasons)[number];

/**
 * What admission answered a START that it took: a promise, of the first token so long after START was received and of each later one, or
 * that it waits, and for how long it is expected to until anything can be promised.
 */
export type Admission = { ttftMs: number; itlMs: number } | { waitMs: number };

export type Hello = readonly [op: typeof Op.HELLO, stream: 0, info: HelloInfo];
/**
 * `response` names the answer for as long as the epoch lives; `droppedTurns` counts the messages that did not fit the context;
 * `admission` is what was promised.
 */
export type Started = readonly [
  op: typeof Op.STARTED,
  stream: number,
  response: string,
  promptTokens: number,
  droppedTurns: number,
  admission: Admission,
];
/** `place` 1 is the next to run. Sent when the place changes. */
export type Queued = readonly [op: typeof Op.QUEUED, stream: number, place: number];
/** `seq` is that of the last token whose text is in here; `flags` is a sum of TokenFlag; `ids` are all since the TOKENS before, if asked for. */
export type Tokens = readonly [op: typeof Op.TOKENS, stream: number, seq: number, text: string, flags: number, ids?: readonly number[]];
/**
 * Log-probabilities of the tokens up to `seq`, in the model's distribution before temperature, penalties and bias. A token's are one flat
 * list `[id, logprob, id, logprob, ...]`: the sampled token, then the likeliest in falling order.
 */
export type Logprobs = readonly [op: typeof Op.LOGPROBS, stream: number, seq: number, tokens: readonly (readonly number[])[]];
/** The answer is here and has come to token `seq`: what the client lacks follows. */
export type Resumed = readonly [
  op: typeof Op.RESUMED,
  stream: number,
  response: string,
  seq: number,
  promptTokens: number,
  droppedTurns: number,
];
/** The answer lives at another origin than this one, of `epoch`. */
export type Misrouted = readonly [op: typeof Op.MISROUTED, stream: number, epoch: string];
/** The answer ended at token `seq`, and its text is no longer kept. `reason` is DONE's, an error's code, or "unknown". */
export type Expired = readonly [op: typeof Op.EXPIRED, stream: number, seq: number, reason: string];
/** The origin of `epoch` is dead, and the answer with it: it may be restarted. */
export type Gone = readonly [op: typeof Op.GONE, stream: number, epoch: string];
/** The answer counts as having ended after `textBytes` bytes, within token `seq`. */
export type Truncated = readonly [op: typeof Op.TRUNCATED, stream: number, seq: number, textBytes: number];
/** The socket ends `deadlineMs` from now. */
export type Goaway = readonly [op: typeof Op.GOAWAY, stream: 0, deadlineMs: number, reason: GoawayReason];
/** The origin stopped at token `seq`: the answer is to be restarted elsewhere. */
export type Handoff = readonly [op: typeof Op.HANDOFF, stream: number, seq: number];
/** `digest` is the CRC-32C of the answer's UTF-8 and `textBytes` its length. */
export type Done = readonly [
  op: typeof Op.DONE,
  stream: number,
  seq: number,
  reason: FinishReason,
  textBytes: number,
  digest: number,
  usage: Usage,
  timings: Timings,
  slo: Slo,
];
/** `stream` 0 speaks of the connection, which closes next. `retryAfterMs` 0: not said. */
export type ErrorMessage = readonly [op: typeof Op.ERROR, stream: number, code: ErrorCode, message: string, retryAfterMs: number];
export type Ping = readonly [op: typeof Op.PING, stream: 0, nonce: number];
export type Start = readonly [op: typeof Op.START, stream: number, messages: ChatMessage[], options: StartOptions];
export type Cancel = readonly [op: typeof Op.CANCEL, stream: number];
export type Pong = readonly [op: typeof Op.PONG, stream: 0, nonce: number];
/** Subscribes to an answer, from the token after `seq` to that of `creditSeq`. */
export type Resume = readonly [op: typeof Op.RESUME, stream: number, epoch: string, response: string, seq: number, creditSeq: number];
/** Tokens up to `seqMax` may be sent. It only grows. */
export type Credit = readonly [op: typeof Op.CREDIT, stream: number, seqMax: number];
/** The user heard the first `textBytes` bytes of the answer. */
export type Truncate = readonly [op: typeof Op.TRUNCATE, stream: number, textBytes: number];

export type ServerMessage =
  | Hello
  | Started
  | Queued
  | Tokens
  | Logprobs
  | Done
  | ErrorMessage
  | Ping
  | Resumed
  | Misrouted
  | Expired
  | Gone
  | Truncated
  | Goaway
  | Handoff;
export type ClientMessage = Start | Cancel | Pong | Resume | Credit | Truncate;
