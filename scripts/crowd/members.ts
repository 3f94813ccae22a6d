/** Who is in the crowd: what each asks for, and when some change their minds. `engine/test/support/crowd.h` is its like in C++. */
import type { GenerateRequest } from "../../engine/binding/index.js";
import type { Random } from "../random.js";

/**
 * When a request is cancelled. `submitted`: right after; `queued`: when it is told its first place; `started`: when its prompt is begun;
 * `token`: when it has `count` tokens; `elsewhere`: when the whole crowd has had `count` tokens, wherever this one stands then.
 */
export interface Cancellation {
  moment: "submitted" | "queued" | "started" | "token" | "elsewhere";
  count: number;
}

export interface Member {
  request: GenerateRequest;
  cancellation: Cancellation | undefined;
}

export interface CrowdShape {
  answered: number;
  cancelled: number;
  tokens: number;
}

/** Tokens of a prompt of its own, and of a beginning that some share. */
export const promptTokens = { min: 4, max: 48, shared: 32 } as const;

const classes = ["voice", "chat", "batch"] as const;
const moments = ["submitted", "queued", "started", "token", "elsewhere"] as const;
/** Deadlines that any machine keeps: answers are compared, not timed. */
const noHurry = { ttftMs: 3_600_000, itlMs: 60_000 } as const;

/** @param text tokens of which prompts are cut. Each asks for `shape.tokens`, with sampling options of its own. */
export function makeCrowd(shape: CrowdShape, text: Int32Array, random: Random): Member[] {
  const cut = (count: number): Int32Array => {
    const first = random.between(0, text.length - count);
    return text.slice(first, first + count);
  };
  const shared = cut(promptTokens.shared);
  const members = Array.from({ length: shape.answered + shape.cancelled }, (_, index): Member => {
    const own = cut(random.between(promptTokens.min, promptTokens.max));
    const request: GenerateRequest = {
      prompt: random.chance(0.2) ? Int32Array.from([...shared, ...own]) : own,
      maxTokens: shape.tokens,
      ...sampling(random),
      stop: [],
      // Most go on to their full length whatever they say; some may end where the model ends them.
      ignoreEos: random.chance(0.9),
      service: classes[index % classes.length] as (typeof classes)[number],
      tenant: index % 5,
      ...noHurry,
    };
    if (index < shape.answered) return { request, cancellation: undefined };
    const moment = moments[index % moments.length] as Cancellation["moment"];
    const count = random.between(1, moment === "token" ? shape.tokens - 1 : (shape.answered * shape.tokens) >> 1);
    return { request, cancellation: { moment, count } };
  });
  return random.shuffled(members);
}

function sampling(random: Random) {
  const greedy = random.chance(0.2);
  const maybe = (probability: number, value: number, otherwise: number): number => (random.chance(probability) ? value : otherwise);
  return {
    temperature: greedy ? 0 : 0.3 + 1.2 * random.uniform(),
    topK: maybe(0.4, random.between(1, 50), 0),
    topP: maybe(0.4, 0.5 + 0.5 * random.uniform(), 1),
    minP: maybe(0.3, 0.1 * random.uniform(), 0),
    repetitionPenalty: maybe(0.3, 1.2, 1),
    presencePenalty: maybe(0.3, 0.5, 0),
    frequencyPenalty: maybe(0.3, 0.5, 0),
    seed: random.between(0, 2 ** 32),
  };
}
