import type { LinkState } from "../index.js";
import { button, element } from "./dom.js";
import { noConnection } from "./wording.js";

/** Says why there is no connection and when it is tried again; empty while there is one. */
export class ConnectionNotice {
  #timer: ReturnType<typeof setInterval> | undefined;
  readonly #text = element("span");
  /** Never spoken: a screen reader would count the seconds aloud. */
  readonly #countdown = element("span", { class: "countdown", "aria-hidden": "true" });

  constructor(
    private readonly place: HTMLElement,
    private readonly say: (sentence: string) => void,
    retry: () => void,
  ) {
    place.append(element("p", {}, this.#text, " ", this.#countdown), button("Try now", "retry", retry));
  }

  show(state: LinkState): void {
    clearInterval(this.#timer);
    this.#countdown.textContent = "";
    if (state.kind === "open") {
      if (!this.place.hidden) this.say("Connected again.");
      this.place.hidden = true;
    } else if (state.kind === "connecting") {
      this.#countdown.textContent = "Trying again…";
    } else {
      const why = noConnection(state.error);
      if (this.place.hidden || this.#text.textContent !== why) this.say(why);
      this.#text.textContent = why;
      this.place.hidden = false;
      if (state.kind === "waiting") this.#count(performance.now() + state.retryInMs);
    }
  }

  #count(untilMs: number): void {
    const tick = (): void => {
      const seconds = Math.max(0, Math.ceil((untilMs - performance.now()) / 1_000));
      this.#countdown.textContent = `Trying again in ${seconds} s.`;
    };
    tick();
    this.#timer = setInterval(tick, 250);
  }
}
