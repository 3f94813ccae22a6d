/** A conversation: questions, their answers, and what of them the next question carries along. */
import type { ChatMessage } from "../shared/protocol.js";
import type { AskOptions } from "./link.js";
import type { Response } from "./response.js";

/** A question and the last attempt at an answer; none where none was asked for yet, or is known any more. */
export interface Turn {
  readonly question: string;
  answer?: Pick<Response, "heard">;
}

export class Conversation {
  readonly #turns: Turn[];

  /**
   * @param start asks, as `Link.start` does.
   * @param options of every question.
   * @param before what was said already.
   */
  constructor(
    private readonly start: (messages: ChatMessage[], options: AskOptions) => Response,
    private readonly options: AskOptions = {},
    private readonly system?: string,
    before: readonly Turn[] = [],
  ) {
    this.#turns = [...before];
  }

  /** Asks the next question. */
  ask(question: string): Response {
    this.#turns.push({ question });
    return this.retry();
  }

  /** Asks the last question again, with its answer forgotten. */
  retry(): Response {
    const turn = this.#turns.at(-1);
    if (!turn) throw new Error("there is no question to ask");
    delete turn.answer;
    const response = this.start(this.messages, this.options);
    turn.answer = response;
    return response;
  }

  /** What the next START would send. An answer that was cut short counts as far as it came, a truncated one as far as it was heard. */
  get messages(): ChatMessage[] {
    const messages: ChatMessage[] = this.system === undefined ? [] : [["system", this.system]];
    for (const { question, answer } of this.#turns) {
      // A question that got no answer joins the next one: many chat templates refuse two user turns in a row.
      const unanswered = messages.at(-1)?.[0] === "user" ? messages.pop() : undefined;
      messages.push(["user", unanswered ? `${unanswered[1]}\n\n${question}` : question]);
      if (answer && answer.heard !== "") messages.push(["assistant", answer.heard]);
    }
    return messages;
  }
}
