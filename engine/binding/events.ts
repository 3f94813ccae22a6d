/**
 * A step's events as they cross from the engine: one flat buffer, records one after another, little-endian, each padded to 4 bytes.
 * `engine/include/events.h` writes what this reads.
 *
 *     u32 request | u32 seq | u8 kind | u8 reason | u16 ids | u32 textBytes | i32 id[ids] | u32 end[ids] | (i32 id | f32 logprob)[ids][each] | text | padding
 *
 * `tokens` has the number `each` of log-probabilities, 0 where none were asked for, in place of the reason; `finished` has u32 queueUs,
 * prefillUs, decodeUs, promptTokens and cachedTokens before its text, which says why it failed.
 */
export type FinishReason = "stop" | "length" | "cancelled" | "closed" | "failed";

/** A sampled token's own log-probability, by the model's distribution before temperature, penalties and bias, and the likeliest tokens'. */
export interface TokenLogprobs {
  id: number;
  logprob: number;
  /** In falling order. */
  top: { id: number; logprob: number }[];
}

export type EngineEvent =
  /** `place` 1 is the next to run. */
  | { kind: "queued"; request: number; place: number }
  /** The engine begins on the prompt. */
  | { kind: "started"; request: number }
  /** Tokens `seq - ids.length + 1` to `seq` are released with this text. Those that the request continued have events of their own, first. */
  | {
      kind: "tokens";
      request: number;
      seq: number;
      ids: Int32Array;
      /** Where the text of each id ends, in bytes of `text` as UTF-8; the last is all of it. */
      ends: Uint32Array;
      text: string;
      /** One an id, where they were asked for; tokens that were continued have none. */
      logprobs?: TokenLogprobs[];
    }
  /** The last event. `seq` counts every sampled token, the end-of-turn token included. Times are microseconds of one monotonic clock. */
  | {
      kind: "finished";
      request: number;
      seq: number;
      reason: FinishReason;
      queueUs: number;
      prefillUs: number;
      decodeUs: number;
      promptTokens: number;
      /** Of the prompt's, those that were in memory already. */
      cachedTokens: number;
      /** Why it failed; empty otherwise. */
      error: string;
    };

const kinds = ["queued", "started", "tokens", "finished"] as const;
const reasons: readonly FinishReason[] = ["stop", "length", "cancelled", "closed", "failed"];
const headerBytes = 16;
// A byte order mark is text like any other: without it the ends would not fit.
const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

export function* readEvents(bytes: Uint8Array): Generator<EngineEvent> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  while (at < bytes.length) {
    const request = view.getUint32(at, true);
    const seq = view.getUint32(at + 4, true);
    const kind = kinds[view.getUint8(at + 8)];
    const reasonOrEach = view.getUint8(at + 9);
    const ids = view.getUint16(at + 10, true);
    const textBytes = view.getUint32(at + 12, true);
    at += headerBytes;
    switch (kind) {
      case "queued":
        yield { kind, request, place: seq };
        break;
      case "started":
        yield { kind, request };
        break;
      case "tokens": {
        const endsAt = at + 4 * ids;
        const logprobsAt = endsAt + 4 * ids;
        const textAt = logprobsAt + 8 * ids * reasonOrEach;
        const text = utf8.decode(bytes.subarray(textAt, textAt + textBytes));
        const event = {
          kind,
          request,
          seq,
          ids: Int32Array.from({ length: ids }, (_, index) => view.getInt32(at + 4 * index, true)),
          ends: Uint32Array.from({ length: ids }, (_, index) => view.getUint32(endsAt + 4 * index, true)),
          text,
        };
        yield reasonOrEach === 0 ? event : { ...event, logprobs: readLogprobs(view, logprobsAt, ids, reasonOrEach) };
        at = textAt + ((textBytes + 3) & ~3);
        break;
      }
      case "finished": {
        const error = utf8.decode(bytes.subarray(at + 20, at + 20 + textBytes));
        yield {
          kind,
          request,
          seq,
          reason: reasons[reasonOrEach] ?? "failed",
          queueUs: view.getUint32(at, true),
          prefillUs: view.getUint32(at + 4, true),
          decodeUs: view.getUint32(at + 8, true),
          promptTokens: view.getUint32(at + 12, true),
          cachedTokens: view.getUint32(at + 16, true),
          error,
        };
        at += 20 + ((textBytes + 3) & ~3);
        break;
      }
      default:
        throw new Error(`an event of unknown kind stands at byte ${at - headerBytes}: the addon and index.ts are of different builds`);
    }
  }
}

function readLogprobs(view: DataView, at: number, count: number, each: number): TokenLogprobs[] {
  const read = (index: number): { id: number; logprob: number } => ({
    id: view.getInt32(at + 8 * index, true),
    logprob: view.getFloat32(at + 8 * index + 4, true),
  });
  return Array.from({ length: count }, (_, token) => ({
    ...read(token * each),
    top: Array.from({ length: each - 1 }, (_, rank) => read(token * each + 1 + rank)),
  }));
}
