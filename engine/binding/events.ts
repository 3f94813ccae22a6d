/**
 * A step's events as they cross from the engine: one flat buffer, records one after another, little-endian, each padded to 4 bytes.
 * `engine/include/events.h` writes what this reads.
 *
 *     u32 request | u32 seq | u8 kind | u8 reason | u16 ids | u32 textBytes | i32 id[ids] | text | padding
 *
 * `finished` has u32 queueUs, prefillUs, decodeUs and promptTokens in place of ids and text.
 */
export type FinishReason = "stop" | "length" | "cancelled" | "closed" | "failed";

export type EngineEvent =
  /** `place` 1 is the next to run. */
  | { kind: "queued"; request: number; place: number }
  /** The engine begins on the prompt. */
  | { kind: "started"; request: number }
  /** Tokens `seq - ids.length + 1` to `seq` are released with this text. */
  | { kind: "tokens"; request: number; seq: number; ids: Int32Array; text: string }
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
    };

const kinds = ["queued", "started", "tokens", "finished"] as const;
const reasons: readonly FinishReason[] = ["stop", "length", "cancelled", "closed", "failed"];
const headerBytes = 16;
const utf8 = new TextDecoder();

export function* readEvents(bytes: Uint8Array): Generator<EngineEvent> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  while (at < bytes.length) {
    const request = view.getUint32(at, true);
    const seq = view.getUint32(at + 4, true);
    const kind = kinds[view.getUint8(at + 8)];
    const reason = reasons[view.getUint8(at + 9)] ?? "failed";
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
        const textAt = at + 4 * ids;
        const text = utf8.decode(bytes.subarray(textAt, textAt + textBytes));
        yield { kind, request, seq, ids: Int32Array.from({ length: ids }, (_, index) => view.getInt32(at + 4 * index, true)), text };
        at = textAt + ((textBytes + 3) & ~3);
        break;
      }
      case "finished":
        yield {
          kind,
          request,
          seq,
          reason,
          queueUs: view.getUint32(at, true),
          prefillUs: view.getUint32(at + 4, true),
          decodeUs: view.getUint32(at + 8, true),
          promptTokens: view.getUint32(at + 12, true),
        };
        at += 16;
        break;
      default:
        throw new Error(`an event of unknown kind stands at byte ${at - headerBytes}: the addon and index.ts are of different builds`);
    }
  }
}
