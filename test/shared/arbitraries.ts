/** Every message of `millrace.v1` as fast-check draws it: any value that PROTOCOL.md allows, its bounds more often than chance would. */
import fc from "fast-check";
import { classNames } from "../../shared/classes.js";
import { type ErrorCode, errorTable } from "../../shared/errors.js";
import { limits } from "../../shared/limits.js";
import {
  type ClientMessage,
  finishReasons,
  formatKinds,
  gapCauses,
  goawayReasons,
  Op,
  type ServerMessage,
  type StartOptions,
} from "../../shared/protocol.js";

/** Whole code points, of one to four bytes of UTF-8. */
const text = fc.string({ unit: "binary", maxLength: 60 });
const int = fc.oneof(fc.nat(300), fc.maxSafeNat(), fc.constantFrom(0, 127, 128, 0xffff, 0x1_0000, 0xffff_ffff, Number.MAX_SAFE_INTEGER));
const fromOne = int.map((value) => Math.max(1, value));
const ms = fc.oneof(int, fc.double({ min: 0, max: 1e9, noNaN: true }));
const stream = fc.oneof(fc.integer({ min: 1, max: 200 }), fc.integer({ min: 1, max: limits.streamNumberMax }));

function number(min: number, max: number): fc.Arbitrary<number> {
  return fc.double({ min, max, noNaN: true }).map((value) => value + 0); // -0 is 0 on the wire or not; nobody may care
}

/** A response, an epoch, a key: 1 to 64 bytes of UTF-8. */
const name = fc.string({ unit: "binary", minLength: 1, maxLength: limits.nameBytesMax / 4 });
const tokenIds = fc.array(fc.oneof(fc.nat(200_000), fc.constant(0x7fff_ffff)), { maxLength: 40 });

const stopText = fc.string({ unit: "binary", minLength: 1, maxLength: limits.stopBytesMax / 4 });

const startOptions: fc.Arbitrary<StartOptions> = fc.record(
  {
    maxTokens: fc.integer({ min: 1, max: 0xffff_ffff }),
    temperature: number(0, 10),
    topK: fc.integer({ min: 0, max: 0x7fff_ffff }),
    topP: number(0, 1),
    minP: number(0, 1),
    repetitionPenalty: number(0.1, 10),
    presencePenalty: number(-10, 10),
    frequencyPenalty: number(-10, 10),
    seed: int,
    stop: fc.array(stopText, { maxLength: limits.stopsMax }),
    minTokens: fc.integer({ min: 0, max: 0xffff_ffff }),
    ignoreEos: fc.boolean(),
    logitBias: fc.dictionary(fc.nat(200_000).map(String), number(-100, 100), { maxKeys: 20, noNullPrototype: true }),
    logprobs: fc.integer({ min: 0, max: limits.logprobsMax }),
    class: fc.constantFrom(...classNames),
    format: fc.record({ kind: fc.constantFrom(...formatKinds), text: fc.string({ unit: "binary", minLength: 1, maxLength: 200 }) }),
    ttftMs: number(1, limits.ttftMsMax),
    itlMs: number(1, limits.itlMsMax),
    waitMs: number(0, limits.waitMsMax),
    overflow: fc.constantFrom("refuse" as const, "drop_oldest" as const),
    after: name,
    key: name,
    attempt: fc.integer({ min: 1, max: 0xffff_ffff }),
    sentTo: name,
    tokenIds: fc.boolean(),
    continueIds: tokenIds,
    creditSeq: int,
    graceMs: ms,
  },
  { requiredKeys: [] },
);

const chatMessage = fc.tuple(fc.constantFrom("system" as const, "user" as const, "assistant" as const), text);

export const clientMessage: fc.Arbitrary<ClientMessage> = fc.oneof(
  fc.tuple(fc.constant(Op.START), stream, fc.array(chatMessage, { minLength: 1, maxLength: 8 }), startOptions),
  fc.tuple(fc.constant(Op.CANCEL), stream),
  fc.tuple(fc.constant(Op.PONG), fc.constant(0 as const), int),
  fc.tuple(fc.constant(Op.RESUME), stream, name, name, int, int),
  fc.tuple(fc.constant(Op.CREDIT), stream, int),
  fc.tuple(fc.constant(Op.TRUNCATE), stream, int),
);

const helloInfo = fc.record({
  epoch: text,
  engine: fc.constantFrom("native" as const, "simulated" as const),
  model: text,
  contextTokens: int,
  frameBytesMax: int,
  streamsMax: int,
  pingEveryMs: ms,
  resumeToken: text,
  failoverWaitMs: ms,
  upgrade: fc.record({ redeemMs: ms, chooseMs: ms, connectMs: ms }),
});

const logprobsOfToken = fc
  .array(fc.tuple(fc.nat(200_000), fc.oneof(number(-50, 0), fc.constant(Number.NEGATIVE_INFINITY))), { minLength: 1, maxLength: 21 })
  .map((pairs) => pairs.flat());

const admission = fc.oneof(fc.record({ ttftMs: ms, itlMs: ms }), fc.record({ waitMs: ms }));

export const serverMessage: fc.Arbitrary<ServerMessage> = fc.oneof(
  fc.tuple(fc.constant(Op.HELLO), fc.constant(0 as const), helloInfo),
  fc.tuple(fc.constant(Op.STARTED), stream, fc.string({ minLength: 1, maxLength: 64 }), int, int, admission),
  fc.tuple(fc.constant(Op.QUEUED), stream, fromOne),
  fc.tuple(fc.constant(Op.TOKENS), stream, fromOne, text, int),
  fc.tuple(fc.constant(Op.TOKENS), stream, fromOne, text, int, tokenIds),
  fc.tuple(fc.constant(Op.RESUMED), stream, name, int, int, int),
  fc.tuple(fc.constant(Op.MISROUTED), stream, name),
  fc.tuple(fc.constant(Op.EXPIRED), stream, int, text),
  fc.tuple(fc.constant(Op.GONE), stream, name),
  fc.tuple(fc.constant(Op.TRUNCATED), stream, int, int),
  fc.tuple(fc.constant(Op.GOAWAY), fc.constant(0 as const), ms, fc.constantFrom(...goawayReasons)),
  fc.tuple(fc.constant(Op.HANDOFF), stream, int),
  fc.tuple(fc.constant(Op.LOGPROBS), stream, fromOne, fc.array(logprobsOfToken, { maxLength: 4 })),
  fc.tuple(
    fc.constant(Op.DONE),
    stream,
    int,
    fc.constantFrom(...finishReasons),
    int,
    fc.integer({ min: 0, max: 0xffff_ffff }),
    fc.record({ promptTokens: int, cachedTokens: int, completionTokens: int, continuedTokens: int }),
    fc.record({
      ...{ queueMs: ms, prefillMs: ms, decodeMs: ms, parkedMs: ms, outboxMs: ms, gapMs: ms },
      gapCause: fc.constantFrom(...gapCauses),
    }),
    fc.record({ lateTokens: int, good: fc.boolean() }),
  ),
  fc.tuple(fc.constant(Op.ERROR), fc.oneof(fc.constant(0), stream), fc.constantFrom(...(Object.keys(errorTable) as ErrorCode[])), text, ms),
  fc.tuple(fc.constant(Op.PING), fc.constant(0 as const), int),
);
