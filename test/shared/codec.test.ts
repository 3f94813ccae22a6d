import fc from "fast-check";
import { Packr } from "msgpackr";
import { describe, expect, test } from "vitest";
import { decodeClientMessage, decodeServerMessage, encode, streamOf } from "../../shared/codec.js";
import { MillraceError } from "../../shared/errors.js";
import { limits } from "../../shared/limits.js";
import { type ClientMessage, Op, type ServerMessage } from "../../shared/protocol.js";
import { clientMessage, serverMessage } from "./arbitraries.js";

const packr = new Packr({ useRecords: false });
const start = (options: object = {}): Uint8Array => packr.pack([Op.START, 1, [["user", "hi"]], options]);

/** The code of the error that decoding throws; fails on anything that is not a MillraceError, and on success. */
function codeOf(decode: () => unknown): string {
  try {
    decode();
  } catch (error) {
    expect(error).toBeInstanceOf(MillraceError);
    return (error as MillraceError).code;
  }
  throw new Error("it was decoded");
}

/** Decodes whatever it is given; anything thrown but a MillraceError fails the test. */
function survives(bytes: Uint8Array): void {
  for (const decode of [decodeClientMessage, decodeServerMessage, streamOf])
    try {
      decode(bytes);
    } catch (error) {
      if (!(error instanceof MillraceError)) throw error;
    }
}

describe("round trips", () => {
  test("every message a client sends is read as it was written", () => {
    fc.assert(fc.property(clientMessage, (message) => void expect(decodeClientMessage(encode(message))).toEqual(message)));
  });

  test("every message an origin sends is read as it was written", () => {
    fc.assert(fc.property(serverMessage, (message) => void expect(decodeServerMessage(encode(message))).toEqual(message)));
  });
});

describe("damage", () => {
  const either = fc.oneof(clientMessage, serverMessage) as fc.Arbitrary<ClientMessage | ServerMessage>;

  test("every cut of a frame is refused as malformed", () => {
    fc.assert(
      fc.property(either, (message) => {
        const bytes = encode(message);
        for (let length = 0; length < bytes.length; length++) {
          const cut = bytes.slice(0, length);
          expect(codeOf(() => decodeClientMessage(cut))).toBe("frame_malformed");
          expect(codeOf(() => decodeServerMessage(cut))).toBe("frame_malformed");
        }
      }),
      { numRuns: 60 },
    );
  });

  test("a frame with any one byte changed is a message or a MillraceError", () => {
    fc.assert(
      fc.property(either, fc.integer({ min: 1, max: 255 }), (message, change) => {
        const bytes = Uint8Array.from(encode(message));
        for (let at = 0; at < bytes.length; at++) {
          bytes[at] = (bytes[at] as number) ^ change;
          survives(bytes);
          bytes[at] = (bytes[at] as number) ^ change;
        }
      }),
      { numRuns: 150 },
    );
  });

  test("any bytes at all are a message or a MillraceError", () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), survives), { numRuns: 2_000 });
    fc.assert(fc.property(fc.anything({ withTypedArray: true, withBigInt: false }), (value) => survives(packable(value))));
  });
});

/** What msgpackr cannot write is nothing that a peer could send. */
function packable(value: unknown): Uint8Array {
  try {
    return packr.pack(value);
  } catch {
    return new Uint8Array();
  }
}

describe("what MessagePack allows and the protocol does not", () => {
  const refused = (...bytes: number[]): string => codeOf(() => decodeClientMessage(Uint8Array.from(bytes)));
  /** `[32, 1, ` and then these bytes as the third element. */
  const third = (...bytes: number[]): number[] => [0x94, Op.START, 1, ...bytes, 0x80];

  test("extension types of every form", () => {
    for (const head of [[0xd4], [0xd5], [0xd6], [0xd7], [0xd8], [0xc7, 1], [0xc8, 0, 1], [0xc9, 0, 0, 0, 1]])
      expect(refused(...third(...head, 1, ...new Array(16).fill(0)))).toBe("frame_malformed");
  });

  test("the byte that MessagePack leaves unused", () => {
    expect(refused(...third(0xc1))).toBe("frame_malformed");
  });

  test("nesting deeper than four, without following it down", () => {
    expect(refused(...third(0x91, 0x91, 0x91, 0x91, 0x01))).toBe("frame_malformed");
    expect(codeOf(() => decodeClientMessage(new Uint8Array(limits.frameBytesMax).fill(0x91)))).toBe("frame_malformed");
  });

  test("texts that are not UTF-8: a stray byte, an overlong form, a surrogate, a cut code point", () => {
    for (const bad of [[0xff], [0xc0, 0x80], [0xed, 0xa0, 0x80], [0xf0, 0x9f, 0x98]])
      expect(refused(...third(0x91, 0x92, 0xa4, 0x75, 0x73, 0x65, 0x72, 0xa0 | bad.length, ...bad))).toBe("frame_malformed");
  });

  test("lengths that lie cost an error and no memory", () => {
    for (const head of [[0xdd], [0xdf], [0xdb], [0xc6]]) expect(refused(...third(...head, 0xff, 0xff, 0xff, 0xff))).toBe("frame_malformed");
    expect(refused(0xdd, 0xff, 0xff, 0xff, 0xff)).toBe("frame_malformed");
  });

  test("more items than the bound", () => {
    const many = packr.pack([Op.START, 1, new Array(limits.frameItemsMax + 1).fill(1), {}]);
    expect(codeOf(() => decodeClientMessage(many))).toBe("frame_malformed");
  });

  test("bytes behind the message", () => {
    expect(refused(...encode([Op.CANCEL, 1]), 0)).toBe("frame_malformed");
  });

  test("a frame over the largest, when written and when read", () => {
    const large = "x".repeat(limits.frameBytesMax);
    expect(codeOf(() => encode([Op.START, 1, [["user", large]], {}]))).toBe("frame_too_large");
    expect(codeOf(() => decodeClientMessage(new Uint8Array(limits.frameBytesMax + 1)))).toBe("frame_malformed");
  });

  test("anything but an array that begins with an op and a stream", () => {
    for (const value of [null, 1, "text", {}, [], [1], ["1", 1], [-1, 1], [256, 1], [32, -1], [32, limits.streamNumberMax + 1], [32, 1.5]])
      expect(codeOf(() => decodeClientMessage(packr.pack(value)))).toBe("frame_malformed");
  });
});

describe("what an origin refuses", () => {
  const invalid = (bytes: Uint8Array): void => {
    expect(codeOf(() => decodeClientMessage(bytes))).toBe("field_invalid");
  };

  test("ops that no client sends, its own among them", () => {
    for (const op of [0, Op.HELLO, Op.TOKENS, 38, 255])
      expect(codeOf(() => decodeClientMessage(packr.pack([op, 1, 1, 1])))).toBe("op_unknown");
  });

  test("options it does not know, by name", () => {
    expect(() => decodeClientMessage(start({ logProbs: true }))).toThrow(/"logProbs" is unknown; there are maxTokens, /);
    invalid(start({ constructor: 1 }));
  });

  test("each option outside its range or of another type", () => {
    const manyBiases = Object.fromEntries(Array.from({ length: limits.logitBiasMax + 1 }, (_, id) => [id, 1]));
    const bad = {
      maxTokens: [0, -1, 1.5, "1", null],
      temperature: [-0.1, 10.1, Number.NaN, "hot"],
      topK: [-1, 1.5, 0x8000_0000],
      topP: [-0.1, 1.1],
      minP: [-0.1, 1.1],
      repetitionPenalty: [0, 11],
      presencePenalty: [-11, 11],
      frequencyPenalty: [-11, 11],
      seed: [-1, 0.5, 2 ** 60],
      stop: ["text", [""], [1], new Array(limits.stopsMax + 1).fill("a"), ["\u00e9".repeat(limits.stopBytesMax / 2 + 1)]],
      minTokens: [-1, 1.5, "1"],
      ignoreEos: [1, "true", null],
      logitBias: [[[1, 2]], { x: 1 }, { "01": 1 }, { "-1": 1 }, { 1: 101 }, { 1: "2" }, { 1: Number.NaN }, manyBiases],
      logprobs: [-1, 0.5, limits.logprobsMax + 1, true],
      format: [
        "json",
        {},
        { kind: "xml", text: "a" },
        { kind: "regex" },
        { kind: "regex", text: "" },
        { kind: "regex", text: "a", strict: true },
        { kind: "regex", text: "x".repeat(limits.formatBytesMax + 1) },
      ],
      ttftMs: [0, -1, limits.ttftMsMax + 1, "1"],
      itlMs: [0, limits.itlMsMax + 1],
      waitMs: [-1, limits.waitMsMax + 1],
      class: ["fast", 1, "toString"],
      overflow: ["truncate", true],
      after: ["", 1, "x".repeat(limits.nameBytesMax + 1)],
      key: ["", null, "\u00e9".repeat(limits.nameBytesMax / 2 + 1)],
      attempt: [0, 1.5],
      sentTo: [""],
      tokenIds: [1, "yes"],
      continueIds: [1, ["a"], [-1], [1.5], [2 ** 31], new Array(limits.continueIdsMax + 1).fill(1)],
      creditSeq: [-1, 0.5],
      graceMs: [-1, "1"],
    };
    for (const [name, values] of Object.entries(bad)) for (const value of values) invalid(start({ [name]: value }));
  });

  test("a bias by integer keys, as other MessagePack libraries write them, is the same as by decimal ones", () => {
    const bytes = packr.pack([Op.START, 1, [["user", "hi"]], { logitBias: new Map([[17, -2]]) }]);
    expect(decodeClientMessage(bytes)).toEqual([Op.START, 1, [["user", "hi"]], { logitBias: { 17: -2 } }]);
    expect(decodeClientMessage(start({ logitBias: { 17: -2 } }))).toEqual(decodeClientMessage(bytes));
  });

  test("messages that are none, too many, or not pairs of a role and a text", () => {
    const tooMany = new Array(limits.messagesMax + 1).fill(["user", "a"]);
    for (const messages of [
      [],
      "hi",
      [["user"]],
      [["user", "a", "b"]],
      [["robot", "a"]],
      [["user", 1]],
      [["user", Buffer.from("a")]],
      tooMany,
    ])
      invalid(packr.pack([Op.START, 1, messages, {}]));
  });

  test("a START on stream 0, and elements too few or too many", () => {
    invalid(packr.pack([Op.START, 0, [["user", "a"]], {}]));
    invalid(packr.pack([Op.START, 1, [["user", "a"]]]));
    invalid(packr.pack([Op.START, 1, [["user", "a"]], {}, 1]));
    invalid(packr.pack([Op.CANCEL, 1, 1]));
  });

  test("a RESUME without names, a stream or a credit, and CREDIT and TRUNCATE of no number", () => {
    invalid(packr.pack([Op.RESUME, 0, "epoch", "response", 0, 1]));
    invalid(packr.pack([Op.RESUME, 1, "", "response", 0, 1]));
    invalid(packr.pack([Op.RESUME, 1, "epoch", "x".repeat(65), 0, 1]));
    invalid(packr.pack([Op.RESUME, 1, "epoch", "response", -1, 1]));
    invalid(packr.pack([Op.RESUME, 1, "epoch", "response", 0]));
    invalid(packr.pack([Op.CREDIT, 1, "all"]));
    invalid(packr.pack([Op.TRUNCATE, 1, 0.5]));
  });

  test("streamOf finds the stream that such an error ends, and none in what is malformed", () => {
    expect(streamOf(packr.pack([Op.START, 7, [], {}]))).toBe(7);
    expect(streamOf(packr.pack([Op.PONG, 0, "x"]))).toBeUndefined();
    expect(streamOf(Uint8Array.of(0xc1))).toBeUndefined();
  });
});

describe("what a client lets pass, so that the protocol can grow", () => {
  test("ops of a later version are ignored", () => {
    for (const op of [16, 20, 31]) expect(decodeServerMessage(packr.pack([op, 1, "anything", {}]))).toBeUndefined();
  });

  test("further elements and unknown keys are left out", () => {
    expect(decodeServerMessage(packr.pack([Op.TOKENS, 1, 2, "a", 0, [17], "more"]))).toEqual([Op.TOKENS, 1, 2, "a", 0, [17]]);
    const done = [
      Op.DONE,
      1,
      2,
      "stop",
      1,
      5,
      { promptTokens: 2, cachedTokens: 1, completionTokens: 2, continuedTokens: 0, saved: 1 },
      { queueMs: 0, prefillMs: 1, decodeMs: 2, parkedMs: 0, outboxMs: 0, gapMs: 1, gapCause: "engine" },
      { lateTokens: 0, good: true },
    ];
    const usage = { promptTokens: 2, cachedTokens: 1, completionTokens: 2, continuedTokens: 0 };
    expect(decodeServerMessage(packr.pack([...done, "met"]))?.[6]).toEqual(usage);
  });

  test("a reason to go that is not known is a reason all the same", () => {
    expect(decodeServerMessage(packr.pack([Op.GOAWAY, 0, 5, "moving"]))).toEqual([Op.GOAWAY, 0, 5, "draining"]);
  });

  test("an unknown error code keeps its sentence and counts as a fault of the origin", () => {
    expect(decodeServerMessage(packr.pack([Op.ERROR, 1, "slo_missed", "too late", 5]))).toEqual([Op.ERROR, 1, "internal", "too late", 5]);
  });
});

test("a decoded message holds nothing of the buffer it came from", () => {
  fc.assert(
    fc.property(clientMessage, (message) => {
      const buffer = Uint8Array.from(encode(message));
      const decoded = decodeClientMessage(buffer);
      buffer.fill(0x61);
      expect(decoded).toEqual(message);
    }),
  );
});

test("binary where a text belongs is refused, not taken as a view", () => {
  const bytes = packr.pack([Op.TOKENS, 1, 1, Buffer.from("text"), 0]);
  expect(codeOf(() => decodeServerMessage(bytes))).toBe("field_invalid");
});
