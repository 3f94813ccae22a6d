/** A conversation: questions, their answers, and what of them the next question carries along. */
import type { ChatMessage, StartOptions } from "../shared/protocol.js";
import type { Connection } from "./connection.js";
import type { Response } from "./response.js";

interface Turn {
  readonly question: string;
  /** The last attempt at an answer; undefined until one was sent. */
  response: Response | undefined;
}

export class Conversation {
  #turns: Turn[] = [];

  /**
   * @param connection gives the connection to ask on, a new one where the last was lost.
   * @param options of every START.
   */
  constructor(
    private readonly connection: () => Promise<Connection>,
    private readonly options: StartOptions = {},
    private readonly system?: string,
  ) {}

  /** Asks the next question. @throws MillraceError where there is no connection; `retry` then asks it again. */
  ask(question: string): Promise<Response> {
    this.#turns.push({ question, response: undefined });
    return this.#send();
  }

  /** Asks the last question again, with its answer forgotten. */
  retry(): Promise<Response> {
    return this.#send();
  }

  /** What the next START would send. An answer that was cut short counts as far as it came. */
  get messages(): ChatMessage[] {
    return this.#messagesOf(this.#turns);
  }

  async #send(): Promise<Response> {
    const turns = this.#turns;
    const turn = turns.at(-1);
    if (!turn) throw new Error("there is no question to ask");
    turn.response = undefined;
    const connection = await this.connection();
    turn.response = connection.start(this.#messagesOf(turns), this.options);
    return turn.response;
  }

  #messagesOf(turns: readonly Turn[]): ChatMessage[] {
    const messages: ChatMessage[] = this.system === undefined ? [] : [["system", this.system]];
    for (const { question, response } of turns) {
      // A question that got no answer joins the next one: many chat templates refuse two user turns in a row.
      const unanswered = messages.at(-1)?.[0] === "user" ? messages.pop() : undefined;
      messages.push(["user", unanswered ? `${unanswered[1]}\n\n${question}` : question]);
      if (response && response.text !== "") messages.push(["assistant", response.text]);
    }
    return messages;
  }
}
