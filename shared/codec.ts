/**
 * Bytes to messages and back. Decoding validates: what it returns has the shape that protocol.ts says, and it throws nothing but a
 * MillraceError. What a decoded message holds is its own, never a view of the bytes, which uWebSockets.js reuses after the callback.
 */
import { Packr, Unpackr } from "msgpackr";
import { isClassName } from "./classes.js";
import { type ErrorCode, isErrorCode, MillraceError } from "./errors.js";
import { limits } from "./limits.js";
import {
  type Admission,
  type ChatMessage,
  type ClientMessage,
  type FinishReason,
  type Format,
  finishReasons,
  formatKinds,
  type HelloInfo,
  Op,
  type Role,
  type ServerMessage,
  type StartOptions,
  type Timings,
  type Usage,
} from "./protocol.js";
import { malformed, scan } from "./scan.js";

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
      return [Op.TOKENS, stream, fields.integer(2, "seq", 1), fields.text(3, "text"), fields.integer(4, "flags")];
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
      ];
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

/** How each option is read. Its keys are the options there are. */
const optionReaders: { [Name in keyof Required<StartOptions>]: (value: unknown, name: string) => Required<StartOptions>[Name] } = {
  maxTokens: (value, name) => within(value, name, 1, 0xffff_ffff, true),
  temperature: (value, name) => within(value, name, 0, 10),
  topK: (value, name) => within(value, name, 0, 0x7fff_ffff, true),
  topP: (value, name) => within(value, name, 0, 1),
  minP: (value, name) => within(value, name, 0, 1),
  repetitionPenalty: (value, name) => within(value, name, 0.1, 10),
  presencePenalty: (value, name) => within(value, name, -10, 10),
  frequencyPenalty: (value, name) => within(value, name, -10, 10),
  seed: (value, name) => within(value, name, 0, Number.MAX_SAFE_INTEGER, true),
  stop: parseStops,
  minTokens: (value, name) => within(value, name, 0, 0xffff_ffff, true),
  ignoreEos: (value, name) => {
    if (typeof value !== "boolean") throw invalid(`${name} is ${shown(value)}, not true or false`);
    return value;
  },
  logitBias: parseBias,
  logprobs: (value, name) => within(value, name, 0, limits.logprobsMax, true),
  class: (value, name) => {
    if (!isClassName(value)) throw invalid(`${name} is ${shown(value)}, not "voice", "chat" or "batch"`);
    return value;
  },
  format: parseFormat,
  ttftMs: (value, name) => within(value, name, 1, limits.ttftMsMax),
  itlMs: (value, name) => within(value, name, 1, limits.itlMsMax),
  waitMs: (value, name) => within(value, name, 0, limits.waitMsMax),
  overflow: (value, name) => oneOf(value, ["refuse", "drop_oldest"] as const, name),
};

function parseOptions(value: unknown): StartOptions {
  const options: Record<string, unknown> = {};
  for (const [name, given] of Object.entries(map(value, "options"))) {
    if (!Object.hasOwn(optionReaders, name))
      throw invalid(`option ${JSON.stringify(name.slice(0, 64))} is unknown; there are ${Object.keys(optionReaders).join(", ")}`);
    options[name] = optionReaders[name as keyof StartOptions](given, name);
  }
  return options as StartOptions;
}

function parseStops(value: unknown, name: string): string[] {
  if (!Array.isArray(value) || value.length > limits.stopsMax) throw invalid(`${name} is not an array of at most ${limits.stopsMax} texts`);
  for (const text of value) {
    const bytes = typeof text === "string" ? new TextEncoder().encode(text).length : 0;
    if (bytes < 1 || bytes > limits.stopBytesMax)
      throw invalid(`${name} has ${shown(text)}, which is not a text of 1 to ${limits.stopBytesMax} bytes`);
  }
  return value as string[];
}

/** Keys are token ids, in decimal: MessagePack integers arrive as such too. */
function parseBias(value: unknown, name: string): Record<string, number> {
  const entries = Object.entries(map(value, name));
  if (entries.length > limits.logitBiasMax) throw invalid(`${name} has ${entries.length} tokens, over ${limits.logitBiasMax}`);
  for (const [id, bias] of entries) {
    if (!/^(0|[1-9]\d{0,9})$/.test(id)) throw invalid(`${name} has ${shown(id)}, which is not a token id`);
    within(bias, `${name} of token ${id}`, -100, 100);
  }
  return Object.fromEntries(entries) as Record<string, number>;
}

function parseFormat(value: unknown, name: string): Format {
  const { kind, text: given, ...others } = map(value, name);
  const [strange] = Object.keys(others);
  if (strange !== undefined) throw invalid(`${name} has ${shown(strange)}; it has kind and text`);
  const bytes = typeof given === "string" ? new TextEncoder().encode(given).length : 0;
  if (bytes < 1 || bytes > limits.formatBytesMax) throw invalid(`${name}'s text is not a text of 1 to ${limits.formatBytesMax} bytes`);
  return { kind: oneOf(kind, formatKinds, `${name}'s kind`), text: given as string };
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
  };
}

function parseTimings(timings: Record<string, unknown>): Timings {
  return {
    queueMs: nonNegative(timings.queueMs, "queueMs"),
    prefillMs: nonNegative(timings.prefillMs, "prefillMs"),
    decodeMs: nonNegative(timings.decodeMs, "decodeMs"),
  };
}

function map(value: unknown, name: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value) || value instanceof Uint8Array)
    throw invalid(`${name} is ${shown(value)}, not a map`);
  return value as Record<string, unknown>;
}

function text(value: unknown, name: string): string {
  if (typeof value !== "string") throw invalid(`${name} is ${shown(value)}, not a text`);
  return value;
}

function nonNegative(value: unknown, name: string): number {
  return within(value, name, 0, Number.MAX_SAFE_INTEGER);
}

function within(value: unknown, name: string, min: number, max: number, integer = false): number {
  if (typeof value !== "number" || !(value >= min && value <= max) || (integer && !Number.isSafeInteger(value)))
    throw invalid(`${name} is ${shown(value)}, not ${integer ? "an integer" : "a number"} from ${min} to ${max}`);
  return value;
}

function oneOf<Value extends string>(value: unknown, allowed: readonly Value[], name: string): Value {
  if (!allowed.includes(value as Value)) throw invalid(`${name} is ${shown(value)}, not one of ${allowed.join(", ")}`);
  return value as Value;
}

function isIntegerWithin(value: unknown, min: number, max: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max;
}

function invalid(why: string): MillraceError {
  return new MillraceError("field_invalid", why);
}

function shown(value: unknown): string {
  if (value === undefined) return "missing";
  if (typeof value === "bigint") return `${value}`;
  if (value instanceof Uint8Array) return `${value.length} bytes`;
  return JSON.stringify(value).slice(0, 80);
}
