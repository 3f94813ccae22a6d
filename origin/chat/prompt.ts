/** A START's messages to the token ids that the engine continues, with the room its answer has. */
import { MillraceError } from "../../shared/errors.js";
import type { ChatMessage } from "../../shared/protocol.js";
import { bounds } from "../bounds.js";
import { fitConversation } from "./fit.js";
import { ChatTemplate } from "./render.js";
import { ChatTokenizer, type SegmentCache } from "./tokenizer.js";
import type { Vocabulary } from "./vocabulary.js";

export interface PromptWish {
  /** As START has it; undefined asks for what there is room for. */
  maxTokens: number | undefined;
  /** Most tokens this session may ask for. */
  tokensMax: number;
  overflow: "refuse" | "drop_oldest";
}

export interface Prompt {
  ids: Int32Array;
  /** Prompt and this fit the context. */
  maxTokens: number;
  /** Messages left out. */
  dropped: number;
}

export class PromptBuilder {
  readonly #template: ChatTemplate;
  readonly #tokenizer: ChatTokenizer;

  /** @throws VocabularyError for a vocabulary or template that cannot be used. */
  constructor(
    vocabulary: Vocabulary,
    private readonly contextTokens: number,
  ) {
    this.#template = new ChatTemplate(vocabulary);
    this.#tokenizer = new ChatTokenizer(vocabulary);
  }

  /** @throws MillraceError `context_exceeded` with the numbers, or `field_invalid`. */
  async build(messages: readonly ChatMessage[], wish: PromptWish): Promise<Prompt> {
    const { maxTokens, tokensMax } = wish;
    if (maxTokens !== undefined && maxTokens > tokensMax)
      throw new MillraceError("field_invalid", `maxTokens is ${maxTokens}, over the ${tokensMax} this session may ask for`);
    const cache: SegmentCache = new Map();
    const encode = (part: readonly ChatMessage[]): Promise<Int32Array> => this.#tokenizer.encode(this.#template.render(part), cache);
    const whole = await encode(messages);
    if (wish.overflow === "refuse") return this.#prompt(whole, 0, wish);
    const room = maxTokens ?? Math.min(bounds.answerTokensMin, tokensMax, this.contextTokens >> 2);
    if (whole.length + room <= this.contextTokens) return this.#prompt(whole, 0, wish);
    const fitting = await fitConversation(messages, this.contextTokens - room, async (part) => (await encode(part)).length);
    if (!fitting) throw this.#exceeded(whole.length, room, "even without its older turns; shorten the last message or the system message");
    return this.#prompt(await encode(fitting.messages), fitting.dropped, wish);
  }

  #prompt(ids: Int32Array, dropped: number, { maxTokens, tokensMax }: PromptWish): Prompt {
    const room = this.contextTokens - ids.length;
    const wanted = maxTokens ?? Math.max(1, Math.min(room, tokensMax));
    if (wanted > room) throw this.#exceeded(ids.length, wanted, 'shorten the conversation, or ask for overflow "drop_oldest"');
    return { ids, maxTokens: wanted, dropped };
  }

  #exceeded(promptTokens: number, maxTokens: number, advice: string): MillraceError {
    return new MillraceError(
      "context_exceeded",
      `the prompt's ${promptTokens} tokens plus maxTokens ${maxTokens} are ${promptTokens + maxTokens}, over the context of ${this.contextTokens}: ${advice}`,
    );
  }
}
