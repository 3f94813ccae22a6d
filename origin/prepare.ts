/** From a START to what the inference is asked: terms, template, tokens, format. Off the event loop where it is long. */
import type { ClassName } from "../shared/classes.js";
import { MillraceError } from "../shared/errors.js";
import type { ChatMessage, StartOptions } from "../shared/protocol.js";
import { bounds, samplingDefaults } from "./bounds.js";
import type { InferenceRequest } from "./inference.js";
import type { Services } from "./responses.js";

/** Whose an answer is: to others it does not exist. */
export interface Owner {
  tenant: string;
  /** Unique in the tenant. */
  user: string;
}

export interface StartRequest {
  owner: Owner;
  /** The whole conversation, that which `after` stands for included. */
  messages: readonly ChatMessage[];
  options: StartOptions;
  class: ClassName;
  /** Most tokens this session may ask for. */
  tokensMax: number;
}

export interface Prepared {
  inference: Omit<InferenceRequest, "seed">;
  /** Messages that did not fit. */
  droppedTurns: number;
}

/**
 * @param isOver whether nobody needs it any more; the result is then undefined.
 * @throws MillraceError `field_invalid`, `context_exceeded` or `overloaded`.
 */
export async function prepare(services: Services, request: StartRequest, isOver: () => boolean): Promise<Prepared | undefined> {
  const { messages, options, class: service, owner, tokensMax } = request;
  const {
    maxTokens,
    minTokens = 0,
    stop = [],
    ignoreEos = false,
    logitBias = {},
    logprobs,
    overflow = "refuse",
    continueIds = [],
  } = options;
  const { tenantWeight, ...deadlines } = services.terms.of(service, owner.tenant, options);
  if (options.format && (minTokens > 0 || ignoreEos || continueIds.length > 0))
    throw new MillraceError(
      "field_invalid",
      "format says where the answer may begin and end: leave out minTokens, ignoreEos and continueIds",
    );
  const special = continueIds.find((id) => services.isSpecial(id));
  if (special !== undefined)
    throw new MillraceError("field_invalid", `continueIds has the special token ${special}, which no answer contains`);
  // A format may take as long as a long conversation does.
  const chars = messages.reduce((sum, [, content]) => sum + content.length, options.format ? bounds.tokenizeLongChars + 1 : 0);
  const built = await services.turnstile.run(`${owner.tenant}\0${owner.user}`, chars, async () => {
    if (isOver()) return undefined;
    const prompt = await services.prompts.build(messages, { maxTokens, tokensMax, overflow });
    return { prompt, format: options.format && (await services.inference.compile(options.format)) };
  });
  if (!built) return undefined;
  const { prompt, format } = built;
  if (minTokens > prompt.maxTokens)
    throw new MillraceError("field_invalid", `minTokens is ${minTokens}, over the ${prompt.maxTokens} that the answer may have`);
  if (continueIds.length > prompt.maxTokens)
    throw new MillraceError(
      "field_invalid",
      `continueIds has ${continueIds.length} tokens, over the ${prompt.maxTokens} that the answer may have`,
    );
  const inference = {
    ...{ ...samplingDefaults, ...pickSampling(options) },
    ...{ prompt: prompt.ids, maxTokens: prompt.maxTokens, continueIds: Int32Array.from(continueIds) },
    ...{ stop, minTokens, ignoreEos, logitBias, logprobs, format, class: service, deadlines, tenant: owner.tenant, tenantWeight },
  };
  return { inference, droppedTurns: prompt.dropped };
}

/** START's sampling options that were given; the rest are the defaults'. */
function pickSampling(options: StartOptions): Partial<Record<keyof typeof samplingDefaults, number>> {
  const names = Object.keys(samplingDefaults) as (keyof typeof samplingDefaults)[];
  return Object.fromEntries(names.filter((name) => options[name] !== undefined).map((name) => [name, options[name]]));
}
