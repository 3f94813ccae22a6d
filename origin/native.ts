/** The native engine behind the inference seam. Nobody else in the origin imports the binding. */
import { Engine, type EngineEvent, type LoadOptions } from "../engine/binding/index.js";
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import { bounds } from "./bounds.js";
import type { Vocabulary } from "./chat/vocabulary.js";
import type { Inference, InferenceHandle, InferenceListener, InferenceLoad, InferenceModel, InferenceRequest } from "./inference.js";

/** What the origin's flags say of it; undefined lets the engine choose. */
export interface NativeConfig {
  /** A GGUF file. */
  model: string;
  threads: number | undefined;
  contextTokens: number | undefined;
  kvMemoryBytes: number | undefined;
  slots: number | undefined;
}

/** @throws EngineError saying what is wrong with the file or the options. */
export async function loadNative(
  config: NativeConfig,
  log: (line: string) => void,
): Promise<{ inference: Inference; vocabulary: Vocabulary }> {
  const { model: path, threads, contextTokens, kvMemoryBytes, slots } = config;
  const chosen = Object.entries({ threads, contextTokens, kvMemoryBytes, slots }).filter(([, value]) => value !== undefined);
  const engine = await Engine.load({ path, ...(Object.fromEntries(chosen) as Partial<LoadOptions>) });
  for (const line of engine.info.log) log(line);
  return { inference: new NativeInference(engine), vocabulary: engine.vocabulary() };
}

export class NativeInference implements Inference {
  readonly kind = "native";
  readonly model: InferenceModel;

  constructor(private readonly engine: Engine) {
    const { name, contextTokens, kernels, threads } = engine.info;
    this.model = { name, contextTokens, runsOn: `${kernels}, ${threads} ${threads === 1 ? "thread" : "threads"}` };
  }

  submit(request: InferenceRequest, listener: InferenceListener): InferenceHandle {
    const total = request.prompt.length + request.maxTokens;
    if (total > this.model.contextTokens)
      throw new MillraceError(
        "context_exceeded",
        `the prompt's ${request.prompt.length} tokens plus maxTokens ${request.maxTokens} are ${total}, over the context of ${this.model.contextTokens}`,
      );
    const { waiting } = this.engine.stats();
    if (waiting >= limits.waitingMax)
      throw new MillraceError("overloaded", `${waiting} requests wait for a slot already, the most there may be`, bounds.retryAfterMs);
    const id = this.engine.submit(request, (event) => tell(listener, event));
    return { cancel: () => this.engine.cancel(id) };
  }

  load(): InferenceLoad {
    const { running, waiting, slots, kvBytesMapped, kvBytesMax } = this.engine.stats();
    return { running, waiting, slots, kvBytesMapped, kvBytesMax };
  }

  close(): Promise<void> {
    return this.engine.close();
  }
}

function tell(listener: InferenceListener, event: EngineEvent): void {
  switch (event.kind) {
    case "queued":
      listener.queued(event.place);
      break;
    case "started":
      break;
    case "tokens":
      listener.tokens(event.seq, event.text);
      break;
    case "finished":
      finish(listener, event);
  }
}

function finish(listener: InferenceListener, event: EngineEvent & { kind: "finished" }): void {
  const { seq, reason } = event;
  if (reason === "closed") listener.failed("the engine was closed while it answered");
  else if (reason === "failed") listener.failed(`the engine gave up after token ${seq}`);
  else {
    const [queueMs, prefillMs, decodeMs] = [event.queueUs / 1_000, event.prefillUs / 1_000, event.decodeUs / 1_000];
    listener.finished({ seq, reason, queueMs, prefillMs, decodeMs });
  }
}
