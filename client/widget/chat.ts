import { type AskOptions, Conversation, type Link, MillraceError, type Response } from "../index.js";
import { AnswerView } from "./answerView.js";
import { element } from "./dom.js";
import type { Memory, Said } from "./memory.js";

export interface ChatPlaces {
  transcript: HTMLOListElement;
  welcome: HTMLElement;
  /** Told whenever an answer begins or ends. */
  onAnswering(answering: boolean): void;
  /** The button that was pressed is gone: the focus needs another place. */
  onRetry(): void;
  say(sentence: string): void;
  grown(): void;
}

/** One conversation on the page: asks, follows the one answer that runs, stops it, asks again, starts over, and outlives a reload. */
export class Chat {
  #conversation: Conversation;
  #said: Said[] = [];
  #answering: Response | undefined;

  constructor(
    private readonly link: Link,
    private readonly options: AskOptions,
    private readonly places: ChatPlaces,
    private readonly memory: Memory,
  ) {
    this.#conversation = this.#converse([]);
  }

  /** Brings back what this tab remembers; an answer that was not over goes on. */
  restore(): void {
    const kept = this.memory.answer();
    this.#said = this.memory.turns();
    const last = this.#said.at(-1);
    // An answer belongs to the turn that asked for it, and to no other.
    const running = kept && last && kept.asked.messages.at(-1)?.[1].endsWith(last.question) ? this.link.adopt(kept) : undefined;
    this.#conversation = this.#converse(
      this.#said.map((said) => ({ question: said.question, answer: running && said === last ? running : { heard: said.text } })),
    );
    for (const said of this.#said) {
      const view = this.#show(said);
      if (running && said === last) this.#follow(view, said, running);
      else view.restore(said.text, said.reason, said.error && new MillraceError(said.error.code, said.error.message));
    }
  }

  ask(question: string): void {
    if (this.#answering) return;
    const said: Said = { question, text: "" };
    this.#said.push(said);
    this.#follow(this.#show(said), said, this.#conversation.ask(question));
  }

  stop(): void {
    this.#answering?.cancel();
  }

  /** Forgets the conversation; an answer that still runs is stopped. */
  startOver(): void {
    this.stop();
    this.#answering = undefined;
    this.#said = [];
    this.memory.forget();
    this.#conversation = this.#converse([]);
    this.places.transcript.replaceChildren();
    this.places.welcome.hidden = false;
    this.places.onAnswering(false);
  }

  /** The question on the page, and the place of its answer. */
  #show(said: Said): AnswerView {
    const { transcript, welcome, say, grown, onRetry } = this.places;
    const retry = (): void => {
      if (this.#answering) return;
      this.#follow(view, said, this.#conversation.retry());
      onRetry();
    };
    const view = new AnswerView({ say, grown, retry });
    const asked = element("div", { class: "question" }, element("h2", { class: "quiet" }, "You asked"), element("p", {}, said.question));
    transcript.append(element("li", {}, asked, view.element));
    welcome.hidden = true;
    return view;
  }

  async #follow(view: AnswerView, said: Said, response: Response): Promise<void> {
    this.#answering = response;
    this.places.onAnswering(true);
    this.places.say("Answering.");
    delete said.reason;
    delete said.error;
    said.text = "";
    this.memory.keepTurns(this.#said);
    this.memory.keepAnswer(response);
    view.begin();
    await view.follow(response, () => this.memory.keepAnswer(response));
    if (this.#answering !== response) return;
    this.#answering = undefined;
    const { heard, reason, error } = response;
    Object.assign(said, { text: heard }, reason && { reason }, error && { error: { code: error.code, message: error.message } });
    this.memory.keepTurns(this.#said);
    this.memory.forgetAnswer();
    this.places.onAnswering(false);
  }

  #converse(before: ConstructorParameters<typeof Conversation>[3]): Conversation {
    return new Conversation((messages, options) => this.link.start(messages, options), this.options, undefined, before);
  }
}
