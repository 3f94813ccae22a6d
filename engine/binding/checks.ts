/** What the binding refuses before the C++ sees it. Each sentence names the field, its value, and what it may be. */
import { type GenerateRequest, kernelSets, type LoadOptions, type ModelInfo } from "./index.js";

/** What the engine refuses: a file it cannot read, an architecture it lacks, options that do not fit the machine. */
export class EngineError extends Error {
  override readonly name = "EngineError";

  /** @param retryAfterMs when a request that was refused for want of room may find some; 0 where waiting does not help. */
  constructor(
    message: string,
    readonly retryAfterMs = 0,
  ) {
    super(message);
  }
}

export function checkLoadOptions(options: LoadOptions): void {
  checkPath(options.path);
  if (options.kvType !== undefined && options.kvType !== "f16" && options.kvType !== "q8")
    throw new EngineError(`kvType is ${JSON.stringify(options.kvType)}, not "f16" or "q8"`);
  if (options.kernels !== undefined && !kernelSets.includes(options.kernels))
    throw new EngineError(`kernels is ${JSON.stringify(options.kernels)}, not one of ${kernelSets.join(", ")}`);
  checkInteger("threads", options.threads, 1, 1024);
  checkInteger("contextTokens", options.contextTokens, 16, 1 << 24);
  checkInteger("kvMemoryBytes", options.kvMemoryBytes, 1, Number.MAX_SAFE_INTEGER);
  checkInteger("slots", options.slots, 1, 4096);
}

export function checkPath(path: string): void {
  if (typeof path !== "string" || path === "") throw new EngineError("path is empty; give a GGUF file");
}

export function checkRequest(request: GenerateRequest, info: ModelInfo): void {
  checkTokens(request.prompt, info);
  checkInteger("maxTokens", request.maxTokens, 1, 0x7fff_ffff);
  const total = request.prompt.length + request.maxTokens;
  if (total > info.contextTokens)
    throw new EngineError(
      `the prompt's ${request.prompt.length} tokens plus maxTokens ${request.maxTokens} are ${total}, over the context of ${info.contextTokens}`,
    );
  checkContinued(request, info);
  checkNumber("temperature", request.temperature, 0, 10);
  checkInteger("topK", request.topK, 0, 0x7fff_ffff);
  checkNumber("topP", request.topP, 0, 1);
  checkNumber("minP", request.minP, 0, 1);
  checkNumber("repetitionPenalty", request.repetitionPenalty, 0.1, 10);
  checkNumber("presencePenalty", request.presencePenalty, -10, 10);
  checkNumber("frequencyPenalty", request.frequencyPenalty, -10, 10);
  checkInteger("seed", request.seed, 0, Number.MAX_SAFE_INTEGER);
  checkNumber("ttftMs", request.ttftMs, 1, msMax);
  checkNumber("itlMs", request.itlMs, 0.1, msMax);
  checkNumber("waitMs", request.waitMs, 0, msMax);
  checkInteger("tenant", request.tenant, 0, 0xffff_ffff);
  checkNumber("tenantWeight", request.tenantWeight, 0.001, 1_000);
  for (const text of request.stop) if (typeof text !== "string" || text === "") throw new EngineError("a stop string is empty");
  checkInteger("minTokens", request.minTokens, 0, request.maxTokens);
  checkInteger("logprobs", request.logprobs, 0, Math.min(20, info.vocabularySize));
  checkBias(request.logitBias ?? {}, info);
}

function checkContinued({ continueIds, maxTokens, grammar }: GenerateRequest, info: ModelInfo): void {
  if (continueIds === undefined) return;
  if (!(continueIds instanceof Int32Array)) throw new EngineError("continueIds is not an Int32Array");
  if (continueIds.length > maxTokens)
    throw new EngineError(`continueIds has ${continueIds.length} tokens, over the ${maxTokens} that the answer may have`);
  if (continueIds.length > 0 && grammar)
    throw new EngineError("continueIds stands beside a grammar, which derives an answer from its first token on");
  const strange = continueIds.find((token) => token < 0 || token >= info.vocabularySize);
  if (strange !== undefined)
    throw new EngineError(`continueIds has token ${strange}, which is not in the vocabulary of ${info.vocabularySize}`);
}

/** A week: the longest deadline or wait. */
const msMax = 604_800_000;

function checkBias(bias: Readonly<Record<string, number>>, info: ModelInfo): void {
  const entries = Object.entries(bias);
  if (entries.length > 1_024) throw new EngineError(`logitBias has ${entries.length} tokens, over 1024`);
  for (const [id, value] of entries) {
    if (!/^\d+$/.test(id) || Number(id) >= info.vocabularySize)
      throw new EngineError(`logitBias names token ${id}, which is not in the vocabulary of ${info.vocabularySize}`);
    checkNumber(`logitBias of token ${id}`, value, -100, 100);
  }
}

export function checkTokens(tokens: Int32Array, info: ModelInfo): void {
  if (!(tokens instanceof Int32Array) || tokens.length === 0) throw new EngineError("the prompt is empty or not an Int32Array");
  if (tokens.length > info.contextTokens) throw new EngineError(`${tokens.length} tokens are over the context of ${info.contextTokens}`);
  for (const token of tokens)
    if (token < 0 || token >= info.vocabularySize)
      throw new EngineError(`token ${token} is not in the vocabulary of ${info.vocabularySize}`);
}

function checkInteger(name: string, value: number | undefined, min: number, max: number): void {
  if (value !== undefined && !Number.isInteger(value)) throw new EngineError(`${name} is ${value}, not an integer`);
  checkNumber(name, value, min, max);
}

function checkNumber(name: string, value: number | undefined, min: number, max: number): void {
  if (value !== undefined && !(value >= min && value <= max)) throw new EngineError(`${name} is ${value}, not from ${min} to ${max}`);
}
