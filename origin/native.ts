/** The native engine behind the inference seam. Nobody else in the origin imports the binding. */
import { Engine, EngineError, type EngineEvent, type Grammar, type LoadOptions } from "../engine/binding/index.js";
import { Digest } from "../shared/digest.js";
import { MillraceError } from "../shared/errors.js";
import type { Format } from "../shared/protocol.js";
import { TokenType, type Vocabulary } from "./chat/vocabulary.js";
import type { Inference, InferenceHandle, InferenceListener, InferenceLoad, InferenceModel, InferenceRequest } from "./inference.js";

/** What the origin's flags say of it; undefined lets the engine choose. */
export interface NativeConfig {
  /** A GGUF file. */
  model: string;
  threads: number | undefined;
  contextTokens: number | undefined;
  kvMemoryBytes: number | undefined;
  slots: number | undefined;
  kvType: "f16" | "q8" | undefined;
  kernels: "auto" | "cpu" | "hopper" | undefined;
  deterministic: boolean;
  precision: "stored" | "fp8" | undefined;
}

/** @throws EngineError saying what is wrong with the file or the options. */
export async function loadNative(
  config: NativeConfig,
  log: (line: string) => void,
): Promise<{ inference: Inference; vocabulary: Vocabulary }> {
  const { model: path, threads, contextTokens, kvMemoryBytes, slots, kvType, kernels, deterministic, precision } = config;
  const chosen = Object.entries({ threads, contextTokens, kvMemoryBytes, slots, kvType, kernels, deterministic, precision }).filter(
    ([, value]) => value !== undefined,
  );
  const engine = await Engine.load({ path, ...(Object.fromEntries(chosen) as Partial<LoadOptions>) });
  for (const line of engine.info.log) log(line);
  const vocabulary = engine.vocabulary();
  return { inference: new NativeInference(engine, vocabulary), vocabulary };
}

/** What a model's tokenizer is made of, without its weights. @throws EngineError saying what is wrong with the file. */
export function readVocabulary(path: string): Promise<Vocabulary> {
  return Engine.readVocabulary(path);
}

export class NativeInference implements Inference {
  readonly kind = "native";
  readonly model: InferenceModel;

  constructor(
    private readonly engine: Engine,
    private readonly vocabulary: Pick<Vocabulary, "types">,
  ) {
    const { name, contextTokens, kernels, device, threads } = engine.info;
    const runsOn = device ? `${kernels}, ${device}` : `${kernels}, ${threads} ${threads === 1 ? "thread" : "threads"}`;
    this.model = { name, contextTokens, runsOn };
  }

  submit(request: InferenceRequest, listener: InferenceListener): InferenceHandle {
    const total = request.prompt.length + request.maxTokens;
    if (total > this.model.contextTokens)
      throw new MillraceError(
        "context_exceeded",
        `the prompt's ${request.prompt.length} tokens plus maxTokens ${request.maxTokens} are ${total}, over the context of ${this.model.contextTokens}`,
      );
    const strange = Object.keys(request.logitBias).find((id) => Number(id) >= this.engine.info.vocabularySize);
    if (strange !== undefined)
      throw new MillraceError(
        "field_invalid",
        `logitBias names token ${strange}, which is not in the model's vocabulary of ${this.engine.info.vocabularySize}`,
      );
    this.#checkContinued(request.continueIds);
    const { class: service, deadlines, tenant, logprobs, format, ...rest } = request;
    const asked = {
      ...{ ...rest, ...deadlines, service, tenant: numberOf(tenant) },
      ...(logprobs === undefined ? {} : { logprobs }),
      ...(format === undefined ? {} : { grammar: format as Grammar }),
    };
    const { id, admission } = refusable(() => this.engine.offer(asked, (event) => tell(listener, event)));
    return {
      admission,
      cancel: () => this.engine.cancel(id),
      pause: () => this.engine.pause(id),
      resume: () => this.engine.resume(id),
    };
  }

  /** No answer that is told contains a control token: who brings one means to steer the model. */
  #checkContinued(ids: Int32Array): void {
    const size = this.engine.info.vocabularySize;
    const strange = ids.find((id) => id < 0 || id >= size);
    if (strange !== undefined)
      throw new MillraceError("field_invalid", `continueIds has token ${strange}, which is not in the model's vocabulary of ${size}`);
    const control = ids.find((id) => this.vocabulary.types[id] === TokenType.control);
    if (control !== undefined)
      throw new MillraceError("field_invalid", `continueIds has the control token ${control}, which no answer contains`);
  }

  async compile(format: Format): Promise<Grammar> {
    try {
      return await this.engine.compile(format);
    } catch (error) {
      throw new MillraceError("field_invalid", `the format cannot be used: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  load(): InferenceLoad {
    const { running, waiting, slots, kvBytesMapped, kvBytesHeld, kvBytesMax, misses } = this.engine.stats();
    return { running, waiting, slots, kvBytesMapped, kvBytesHeld, kvBytesMax, misses };
  }

  close(): Promise<void> {
    return this.engine.close();
  }
}

/** Tenants are told apart by number; two that share one share their part of the engine too. */
function numberOf(tenant: string): number {
  const digest = new Digest();
  digest.update(new TextEncoder().encode(tenant));
  return digest.value;
}

/** What the engine refuses because it has no room now is `overloaded`, with its own word on when to try again. */
function refusable<Value>(submit: () => Value): Value {
  try {
    return submit();
  } catch (error) {
    if (error instanceof EngineError && error.retryAfterMs > 0) throw new MillraceError("overloaded", error.message, error.retryAfterMs);
    throw error;
  }
}

function tell(listener: InferenceListener, event: EngineEvent): void {
  switch (event.kind) {
    case "queued":
      listener.queued(event.place);
      break;
    case "started":
      break;
    case "tokens": {
      const { seq, text, ids, ends, logprobs } = event;
      listener.tokens({ seq, text, ids: Array.from(ids), ends: Array.from(ends), ...(logprobs ? { logprobs } : {}) });
      break;
    }
    case "finished":
      finish(listener, event);
  }
}

function finish(listener: InferenceListener, event: EngineEvent & { kind: "finished" }): void {
  const { seq, reason, cachedTokens } = event;
  if (reason === "closed") listener.failed("the engine was closed while it answered");
  else if (reason === "failed") listener.failed(`the engine gave up after token ${seq}: ${event.error}`);
  else {
    const [queueMs, prefillMs, decodeMs] = [event.queueUs / 1_000, event.prefillUs / 1_000, event.decodeUs / 1_000];
    listener.finished({ seq, reason, cachedTokens, queueMs, prefillMs, decodeMs });
  }
}
