import { element } from "./dom.js";

/** Speaks to screen readers through a polite live region: whole sentences and blocks, one after the other, never tokens. */
export class Announcer {
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly region: HTMLElement) {}

  say(sentence: string): void {
    this.region.append(element("p", {}, sentence));
    // What was said stands in the conversation already; left here, whoever reads the page by lines would find it twice.
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.region.replaceChildren(), clearAfterMs);
  }
}

const clearAfterMs = 5_000;
