/**
 * Bytes to messages and back. Decoding validates: what it returns has the shape that protocol.ts says, and it throws nothing but a
 * MillraceError. What a decoded message holds is its own, never a view of the bytes, which uWebSockets.js reuses after the callback.
 */
import { Packr, Unpackr } from "msgpackr";
import { type ErrorCode, isErrorCode, MillraceError } from "./errors.js";
import { limits } from "./limits.js";
import {
  type Admission,
  type ChatMessage,
  type ClientMessage,
  type FinishReason,
  finishReasons,
  gapCauses,
  goawayReasons,
  type HelloInfo,
  Op,
  type Role,
  type ServerMessage,
  type Slo,
  type Timings,
  type UpgradeTimings,
  type Usage,
} from "./protocol.js";
import { boolean, invalid, isIntegerWithin, map, nameText, nonNegative, oneOf, shown, text, tokenIds } from "./readers.js";
import { malformed, scan } from "./scan.js";
import { parseOptions } from "./startOptions.js";

const packr = new Packr({ useRecords: false });
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true, int64AsType: "number" });
const roles: readonly Role[] = ["system", "user", "assistant"];

/** @throws MillraceError `frame_too_large` over limits.frameBytesMax. */
export function encode(message: ClientMessage | ServerMessage): Uint8Array {
  const bytes = packr.pack(message);
  if (bytes.length > limits.frameBytesMax)
    throw new MillraceError(
      "frame_too_large",
      `the message takes ${bytes.length} bytes, over the limit of ${limits.frameBytesMax}: shorten the conversation`,
    );
  return bytes;
}

/** What the origin reads. Further elements, unknown fields and unknown ops are refused: it must not promise what it does not know. */
export function decodeClientMessage(bytes: Uint8Array): ClientMessage {
  const fields = new Fields(unpack(bytes));
  const stream = fields.stream;
  switch (fields.op) {
    case Op.START: {
      fields.exactly(4);
      if (stream === 0) throw invalid("START's stream is 0, which is the connection's own");
      return [Op.START, stream, parseMessages(fields.at(2)), parseOptions(fields.at(3))];
    }
    case Op.CANCEL:
      fields.exactly(2);
      return [Op.CANCEL, stream];
    case Op.PONG:
      fields.exactly(3);
      return [Op.PONG, 0, fields.integer(2, "nonce")];
    case Op.RESUME: {
      fields.exactly(6);
      if (stream === 0) throw invalid("RESUME's stream is 0, which is the connection's own");
      const [epoch, response] = [nameText(fields.at(2), "epoch"), nameText(fields.at(3), "response")];
      return [Op.RESUME, stream, epoch, response, fields.integer(4, "seq"), fields.integer(5, "creditSeq")];
    }
    case Op.CREDIT:
      fields.exactly(3);
      return [Op.CREDIT, stream, fields.integer(2, "seqMax")];
    case Op.TRUNCATE:
      fields.exactly(3);
      return [Op.TRUNCATE, stream, fields.integer(2, "textBytes")];
    default:
      throw new MillraceError("op_unknown", `op ${fields.op} is none that a client sends`);
  }
}

/** What the SDK reads; `undefined` is an op of a later version, to be ignored, as are further elements and unknown keys. */
export function decodeServerMessage(bytes: Uint8Array): ServerMessage | undefined {
  const fields = new Fields(unpack(bytes));
  const stream = fields.stream;
  switch (fields.op) {
    case Op.TOKENS:
      return parseTokens(stream, fields);
    case Op.LOGPROBS:
      return [Op.LOGPROBS, stream, fields.integer(2, "seq", 1), parseLogprobs(fields.at(3))];
    case Op.PING:
      return [Op.PING, 0, fields.integer(2, "nonce")];
    case Op.QUEUED:
      return [Op.QUEUED, stream, fields.integer(2, "place", 1)];
    case Op.STARTED:
      return [
        Op.STARTED,
        stream,
        fields.text(2, "response"),
        fields.integer(3, "promptTokens"),
        fields.integer(4, "droppedTurns"),
        parseAdmission(fields.map(5, "admission")),
      ];
    case Op.DONE:
      return [
        Op.DONE,
        stream,
        fields.integer(2, "seq"),
        oneOf(fields.at(3), finishReasons, "reason") as FinishReason,
        fields.integer(4, "textBytes"),
        fields.integer(5, "digest"),
        parseUsage(fields.map(6, "usage")),
        parseTimings(fields.map(7, "timings")),
        parseSlo(fields.map(8, "slo")),
      ];
    case Op.RESUMED:
      return [
        Op.RESUMED,
        stream,
        fields.text(2, "response"),
        fields.integer(3, "seq"),
        fields.integer(4, "promptTokens"),
        fields.integer(5, "droppedTurns"),
      ];
    case Op.MISROUTED:
      return [Op.MISROUTED, stream, fields.text(2, "epoch")];
    case Op.EXPIRED:
      return [Op.EXPIRED, stream, fields.integer(2, "seq"), fields.text(3, "reason")];
    case Op.GONE:
      return [Op.GONE, stream, fields.text(2, "epoch")];
    case Op.TRUNCATED:
      return [Op.TRUNCATED, stream, fields.integer(2, "seq"), fields.integer(3, "textBytes")];
    case Op.GOAWAY:
      // A reason of a later version is a reason to go all the same.
      return [Op.GOAWAY, 0, fields.number(2, "deadlineMs"), goawayReasons.find((reason) => reason === fields.at(3)) ?? "draining"];
    case Op.HANDOFF:
      return [Op.HANDOFF, stream, fields.integer(2, "seq")];
    case Op.ERROR: {
      const code = fields.text(2, "code");
      // A code from a later version keeps its sentence; what may be done about it is the most careful thing.
      const known: ErrorCode = isErrorCode(code) ? code : "internal";
      return [Op.ERROR, stream, known, fields.text(3, "message"), fields.number(4, "retryAfterMs")];
    }
    case Op.HELLO:
      return [Op.HELLO, 0, parseHello(fields.map(2, "info"))];
    default:
      return undefined;
  }
}

/** The stream of a frame whose fields turned out bad, so that the error can end that stream alone; undefined if it has none. */
export function streamOf(bytes: Uint8Array): number | undefined {
  try {
    const { stream } = new Fields(unpack(bytes));
    return stream === 0 ? undefined : stream;
  } catch {
    return undefined;
  }
}

function unpack(bytes: Uint8Array): unknown {
  if (bytes.length > limits.frameBytesMax) throw malformed(`it has ${bytes.length} bytes, over ${limits.frameBytesMax}`);
  scan(bytes);
  try {
    return unpackr.unpack(bytes);
  } catch (error) {
    throw malformed(error instanceof Error ? error.message : "unpacking failed");
  }
}

/** The elements of one message, read by position; each reader says what was wrong and where. */
class Fields {
  readonly #items: readonly unknown[];
  readonly op: number;
  readonly stream: number;

  constructor(value: unknown) {
    if (!Array.isArray(value) || value.length < 2) throw malformed("it is not an array of an op and a stream");
    this.#items = value;
    if (!isIntegerWithin(value[0], 0, 255)) throw malformed(`its op is ${shown(value[0])}`);
    if (!isIntegerWithin(value[1], 0, limits.streamNumberMax)) throw malformed(`its stream is ${shown(value[1])}`);
    this.op = value[0];
    this.stream = value[1];
  }

  exactly(count: number): void {
    if (this.#items.length !== count) throw invalid(`op ${this.op} takes ${count} elements, not ${this.#items.length}`);
  }

  at(index: number): unknown {
    return this.#items[index];
  }

  integer(index: number, name: string, min = 0): number {
    const value = this.#items[index];
    if (!isIntegerWithin(value, min, Number.MAX_SAFE_INTEGER)) throw invalid(`${name} is ${shown(value)}, not an integer from ${min}`);
    return value;
  }

  number(index: number, name: string): number {
    return nonNegative(this.#items[index], name);
  }

  text(index: number, name: string): string {
    const value = this.#items[index];
    if (typeof value !== "string") throw invalid(`${name} is ${shown(value)}, not a text`);
    return value;
  }

  map(index: number, name: string): Record<string, unknown> {
    return map(this.#items[index], name);
  }
}

function parseTokens(stream: number, fields: Fields): ServerMessage {
  const [seq, text, flags] = [fields.integer(2, "seq", 1), fields.text(3, "text"), fields.integer(4, "flags")];
  const ids = fields.at(5);
  return ids === undefined ? [Op.TOKENS, stream, seq, text, flags] : [Op.TOKENS, stream, seq, text, flags, tokenIds(ids, "ids")];
}

function parseMessages(value: unknown): ChatMessage[] {
  if (!Array.isArray(value) || value.length < 1 || value.length > limits.messagesMax)
    throw invalid(`messages is not an array of 1 to ${limits.messagesMax} pairs of role and content`);
  return value.map((message, index) => {
    if (!Array.isArray(message) || message.length !== 2) throw invalid(`messages[${index}] is not a pair of role and content`);
    const role = oneOf(message[0], roles, `messages[${index}]'s role`) as Role;
    if (typeof message[1] !== "string") throw invalid(`messages[${index}]'s content is ${shown(message[1])}, not a text`);
    return [role, message[1]];
  });
}

function parseLogprobs(value: unknown): number[][] {
  const isRow = (row: unknown): row is number[] =>
    Array.isArray(row) &&
    row.length >= 2 &&
    row.length % 2 === 0 &&
    row.every((item, index) => (index % 2 === 0 ? isIntegerWithin(item, 0, Number.MAX_SAFE_INTEGER) : typeof item === "number"));
  if (!Array.isArray(value) || !value.every(isRow))
    throw invalid("logprobs are not lists of token ids, each followed by its log-probability");
  return value;
}

function parseHello(info: Record<string, unknown>): HelloInfo {
  return {
    epoch: text(info.epoch, "epoch"),
    engine: oneOf(info.engine, ["native", "simulated"] as const, "engine"),
    model: text(info.model, "model"),
    contextTokens: nonNegative(info.contextTokens, "contextTokens"),
    frameBytesMax: nonNegative(info.frameBytesMax, "frameBytesMax"),
    streamsMax: nonNegative(info.streamsMax, "streamsMax"),
    pingEveryMs: nonNegative(info.pingEveryMs, "pingEveryMs"),
    resumeToken: text(info.resumeToken, "resumeToken"),
    failoverWaitMs: nonNegative(info.failoverWaitMs, "failoverWaitMs"),
    upgrade: parseUpgrade(map(info.upgrade, "upgrade")),
  };
}

function parseUpgrade(upgrade: Record<string, unknown>): UpgradeTimings {
  return {
    redeemMs: nonNegative(upgrade.redeemMs, "redeemMs"),
    chooseMs: nonNegative(upgrade.chooseMs, "chooseMs"),
    connectMs: nonNegative(upgrade.connectMs, "connectMs"),
  };
}

function parseAdmission({ ttftMs, itlMs, waitMs }: Record<string, unknown>): Admission {
  if (waitMs !== undefined) return { waitMs: nonNegative(waitMs, "waitMs") };
  return { ttftMs: nonNegative(ttftMs, "ttftMs"), itlMs: nonNegative(itlMs, "itlMs") };
}

function parseUsage(usage: Record<string, unknown>): Usage {
  return {
    promptTokens: nonNegative(usage.promptTokens, "promptTokens"),
    cachedTokens: nonNegative(usage.cachedTokens, "cachedTokens"),
    completionTokens: nonNegative(usage.completionTokens, "completionTokens"),
    continuedTokens: nonNegative(usage.continuedTokens, "continuedTokens"),
  };
}

function parseTimings(timings: Record<string, unknown>): Timings {
  return {
    queueMs: nonNegative(timings.queueMs, "queueMs"),
    prefillMs: nonNegative(timings.prefillMs, "prefillMs"),
    decodeMs: nonNegative(timings.decodeMs, "decodeMs"),
    parkedMs: nonNegative(timings.parkedMs, "parkedMs"),
    outboxMs: nonNegative(timings.outboxMs, "outboxMs"),
    gapMs: nonNegative(timings.gapMs, "gapMs"),
    gapCause: oneOf(timings.gapCause, gapCauses, "gapCause"),
  };
}

function parseSlo({ lateTokens, good }: Record<string, unknown>): Slo {
  return { lateTokens: nonNegative(lateTokens, "lateTokens"), good: boolean(good, "good") };
}
