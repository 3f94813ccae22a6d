import { Conversation, type Link, MillraceError, type Response, type StartOptions } from "../index.js";
import { AnswerView } from "./answerView.js";
import { element } from "./dom.js";

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

/** The attempt that runs. A stop may come before its response does. */
interface Running {
  response?: Response;
  stopped: boolean;
}

/** One conversation on the page: asks, follows the one answer that runs, stops it, asks again, and starts over. */
export class Chat {
  #conversation: Conversation;
  #answering: Running | undefined;

  constructor(
    private readonly link: Link,
    private readonly options: StartOptions,
    private readonly places: ChatPlaces,
  ) {
    this.#conversation = this.#fresh();
  }

  ask(question: string): void {
    if (this.#answering) return;
    const { transcript, welcome, say, grown, onRetry } = this.places;
    const conversation = this.#conversation;
    const retry = (): void => {
      this.#follow(view, () => conversation.retry());
      onRetry();
    };
    const view = new AnswerView({ say, grown, retry });
    const asked = element("div", { class: "question" }, element("h2", { class: "quiet" }, "You asked"), element("p", {}, question));
    transcript.append(element("li", {}, asked, view.element));
    welcome.hidden = true;
    this.#follow(view, () => conversation.ask(question));
  }

  stop(): void {
    if (!this.#answering) return;
    this.#answering.stopped = true;
    this.#answering.response?.cancel();
  }

  /** Forgets the conversation; an answer that still runs is stopped. */
  startOver(): void {
    this.stop();
    this.#answering = undefined;
    this.#conversation = this.#fresh();
    this.places.transcript.replaceChildren();
    this.places.welcome.hidden = false;
    this.places.onAnswering(false);
  }

  async #follow(view: AnswerView, send: () => Promise<Response>): Promise<void> {
    if (this.#answering) return;
    const answering: Running = { stopped: false };
    this.#answering = answering;
    this.places.onAnswering(true);
    this.places.say("Answering.");
    view.begin();
    try {
      answering.response = await send();
      if (answering.stopped) answering.response.cancel();
      await view.follow(answering.response);
    } catch (error) {
      view.fail(error instanceof MillraceError ? error : new MillraceError("internal", String(error)));
    }
    if (this.#answering !== answering) return;
    this.#answering = undefined;
    this.places.onAnswering(false);
  }

  #fresh(): Conversation {
    return new Conversation(() => this.link.connection(), this.options);
  }
}
