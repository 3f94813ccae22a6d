/** Sequences of frames, and how one becomes another. */
import { encode } from "../../shared/codec.js";
import { type ClientMessage, Op, type StartOptions } from "../../shared/protocol.js";
import type { Random } from "../random.js";

export type Frames = readonly Uint8Array[];

const framesMax = 24;
const bytesMax = 4_096;

/** Messages that mean something, with small numbers so that they meet one another. */
export function plausible(random: Random, known: { epoch: string; responses: readonly string[] }): Uint8Array {
  const stream = random.between(1, 5);
  const option = <Value>(value: Value): Value | undefined => (random.chance(0.3) ? value : undefined);
  const options: Record<string, unknown> = {
    maxTokens: option(random.between(1, 9)),
    key: option(random.pick(["a", "b"])),
    attempt: option(random.between(1, 3)),
    sentTo: option(random.pick([known.epoch, "gone", "other"])),
    continueIds: option(Array.from({ length: random.between(0, 4) }, () => random.between(0, 200))),
    creditSeq: option(random.between(0, 6)),
    graceMs: option(random.between(0, 3)),
    tokenIds: option(true),
    stop: option([random.pick([" the", "e", "\u6c34"])]),
    after: option(random.pick(known.responses)),
    class: option(random.pick(["voice", "chat", "batch"] as const)),
  };
  const start = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as StartOptions;
  const messages: ClientMessage[] = [
    [Op.START, stream, [["user", random.pick(["hi", "", "\u{1f30a}"])]], start],
    [Op.CANCEL, stream],
    [Op.PONG, 0, random.between(0, 3)],
    [
      Op.RESUME,
      stream,
      random.pick([known.epoch, "gone", "other"]),
      random.pick(known.responses),
      random.between(0, 8),
      random.between(0, 9),
    ],
    [Op.CREDIT, stream, random.between(0, 9)],
    [Op.TRUNCATE, stream, random.between(0, 20)],
  ];
  return Uint8Array.from(encode(random.pick(messages)));
}

/** One change or a few. @param others to splice from. @param fresh a frame that means something. */
export function mutate(frames: Frames, others: readonly Frames[], random: Random, fresh: () => Uint8Array): Frames {
  let changed = [...frames];
  for (let times = random.between(1, 4); times > 0; times--) changed = mutateOnce(changed, others, random, fresh);
  return changed.slice(0, framesMax);
}

function mutateOnce(frames: Uint8Array[], others: readonly Frames[], random: Random, fresh: () => Uint8Array): Uint8Array[] {
  const at = random.between(0, Math.max(0, frames.length - 1));
  switch (random.between(0, 6)) {
    case 0:
      return [...frames.slice(0, at), fresh(), ...frames.slice(at)];
    case 1:
      return [...frames, fresh()];
    case 2:
      return frames.filter((_, index) => index !== at);
    case 3:
      return [...frames.slice(0, at), ...random.pick(others).slice(random.between(0, 5))];
    case 4:
      return frames.flatMap((frame, index) => (index === at ? [frame, frame] : [frame]));
    default:
      return frames.map((frame, index) => (index === at ? mutateBytes(frame, random) : frame));
  }
}

const interesting = [0, 1, 0x7f, 0x80, 0x90, 0xa0, 0xc0, 0xc1, 0xc4, 0xc7, 0xca, 0xcf, 0xd4, 0xd9, 0xdc, 0xdd, 0xde, 0xe0, 0xff];

function mutateBytes(frame: Uint8Array, random: Random): Uint8Array {
  const bytes = [...frame];
  const at = random.between(0, Math.max(0, bytes.length - 1));
  switch (random.between(0, 4)) {
    case 0:
      bytes[at] = (bytes[at] ?? 0) ^ (1 << random.between(0, 7));
      break;
    case 1:
      bytes[at] = random.pick(interesting);
      break;
    case 2:
      bytes.splice(at, random.between(1, 4));
      break;
    case 3:
      bytes.splice(at, 0, ...Array.from({ length: random.between(1, 8) }, () => random.between(0, 255)));
      break;
    default:
      bytes.splice(at, 0, ...bytes.slice(random.between(0, at), at + 4));
  }
  return Uint8Array.from(bytes.slice(0, bytesMax));
}
