/** What tests of the binding share: a plain request, and a listener that keeps what it hears and can be waited for. */
import type { Engine, EngineEvent, GenerateRequest } from "../../engine/binding/index.js";
import { greedy } from "../../scripts/bench/greedy.js";

export function request(prompt: ArrayLike<number>, maxTokens: number, more: Partial<GenerateRequest> = {}): GenerateRequest {
  return {
    prompt: Int32Array.from(prompt),
    maxTokens,
    ...greedy,
    seed: 0,
    ...more,
  };
}

export type End = EngineEvent & { kind: "finished" };

export interface Answer {
  id: number;
  events: EngineEvent[];
  /** Settles with the last event. */
  finished: Promise<End>;
  /** Settles with the first event of this kind. */
  first(kind: EngineEvent["kind"]): Promise<EngineEvent>;
  text(): string;
  ids(): number[];
}

/** Submits and listens. What does not come is the test's deadline to notice. */
export function ask(engine: Engine, what: GenerateRequest): Answer {
  const events: EngineEvent[] = [];
  const waiting: { kind: EngineEvent["kind"]; resolve: (event: EngineEvent) => void }[] = [];
  const first = (kind: EngineEvent["kind"]): Promise<EngineEvent> => {
    const found = events.find((event) => event.kind === kind);
    return found ? Promise.resolve(found) : new Promise((resolve) => waiting.push({ kind, resolve }));
  };
  const finished = first("finished") as Promise<End>;
  const id = engine.submit(what, (event) => {
    events.push(event);
    for (const each of waiting) if (each.kind === event.kind) each.resolve(event);
  });
  const tokens = (): (EngineEvent & { kind: "tokens" })[] => events.filter((event) => event.kind === "tokens");
  return {
    id,
    events,
    finished,
    first,
    text: () =>
      tokens()
        .map(({ text }) => text)
        .join(""),
    ids: () => tokens().flatMap(({ ids }) => [...ids]),
  };
}
