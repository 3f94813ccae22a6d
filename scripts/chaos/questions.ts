/** What is asked, and what the answer has to be: computed here from the prompt, by the same rule as the simulated inference goes by. */
import { PromptBuilder } from "../../origin/chat/prompt.js";
import { simulatedAnswer, simulatedVocabulary } from "../../origin/simulated.js";
import type { ChatMessage, StartOptions } from "../../shared/protocol.js";
import type { Random } from "../random.js";

export interface Question {
  name: string;
  messages: ChatMessage[];
  options: StartOptions;
  expected: string;
}

const contextTokens = 8_192;

export class Questions {
  readonly #vocabulary = simulatedVocabulary();
  readonly #prompts = new PromptBuilder(this.#vocabulary, contextTokens);
  #asked = 0;

  constructor(private readonly answerTokens: number) {}

  async next(random: Random): Promise<Question> {
    const number = ++this.#asked;
    const messages: ChatMessage[] = [["user", `Question ${number}: what turns the wheel, ${random.between(0, 1e9)}?`]];
    // Lengths differ, so that ends do not coincide.
    const maxTokens = random.between(Math.ceil(this.answerTokens / 2), Math.floor(1.5 * this.answerTokens));
    const service = random.chance(0.5) ? ("voice" as const) : ("chat" as const);
    const prompt = await this.#prompts.build(messages, { maxTokens, tokensMax: contextTokens, overflow: "refuse" });
    const { text } = simulatedAnswer(this.#vocabulary, prompt.ids, maxTokens);
    return { name: `answer ${number}`, messages, options: { maxTokens, class: service }, expected: text };
  }
}
