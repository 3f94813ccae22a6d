import type { FinishReason, MillraceError, Response } from "../index.js";
import { copyButton } from "./clipboard.js";
import { button, element, icon } from "./dom.js";
import { LiveMarkdown } from "./liveMarkdown.js";
import { brokenOff, leftOut, queued, readout, sentence } from "./wording.js";

/** What an answer needs of the page around it. */
export interface Surroundings {
  /** Speaks to screen readers. */
  say(sentence: string): void;
  /** The page may have grown. */
  grown(): void;
  /** Asks this answer's question again. */
  retry(): void;
}

/** One answer on the page: waiting, arriving, finished or broken off; and asked again, with what it showed before kept above. */
export class AnswerView {
  readonly element = element("article", { class: "answer", "aria-label": "Answer" });
  readonly #earlier = element("div", { class: "earlier" });
  readonly #leftOut = element("p", { class: "left-out" });
  readonly #waiting = element("p", { class: "waiting" });
  readonly #end = element("div", { class: "end" });
  readonly #readout = element("dl", { class: "readout" });
  readonly #footer = element("footer", {});
  #prose = element("div", { class: "prose" });
  #text = "";
  #readoutMs = 0;

  constructor(private readonly around: Surroundings) {
    this.element.append(this.#earlier, this.#leftOut, this.#waiting, this.#prose, this.#end, this.#footer);
  }

  /** Clears the stage for an attempt; what an earlier one showed moves above it, and folds away once this one has text. */
  begin(): void {
    if (this.#text !== "") {
      this.#earlier.append(element("details", { open: "" }, element("summary", {}, "Earlier attempt"), this.#prose));
      this.#prose = element("div", { class: "prose" });
      this.#end.before(this.#prose);
    }
    this.#text = "";
    this.#end.replaceChildren();
    this.#footer.replaceChildren();
    this.#leftOut.textContent = "";
    this.element.setAttribute("aria-busy", "true");
    this.#wait("Thinking…");
  }

  /** Shows an answer that is over, as it was; nothing is said of it again. */
  restore(text: string, reason: FinishReason | undefined, error: MillraceError | undefined): void {
    this.#text = text;
    const live = new LiveMarkdown(this.#prose, (block) => this.#letCopy(block));
    live.append(text);
    live.finish();
    if (error) this.#showError(error);
    else this.#showEnd(reason);
  }

  /** Shows an answer as it arrives, until it has ended in whichever way. @param onGrown called when there is more of it. */
  async follow(response: Response, onGrown: () => void): Promise<void> {
    response.onQueued = (place) => this.#wait(queued(place));
    const live = new LiveMarkdown(this.#prose, (block) => this.#blockDone(block));
    let frame = 0;
    try {
      for await (const delta of response) {
        if (this.#text === "") this.#firstText(response);
        this.#text += delta;
        live.append(delta);
        onGrown();
        frame ||= requestAnimationFrame(() => {
          frame = 0;
          live.show();
          this.#measure(response, performance.now());
          this.around.grown();
        });
      }
    } catch {
      // The response says below what ended it.
    }
    cancelAnimationFrame(frame);
    live.finish();
    this.#measure(response, Number.POSITIVE_INFINITY);
    if (response.error) this.around.say(this.#showError(response.error));
    else this.around.say(this.#showEnd(response.reason));
    this.around.grown();
  }

  /** Ends with what went wrong and the way to ask again; the text stays. @returns what is to be said of it. */
  #showError(error: MillraceError): string {
    const title = brokenOff(error.code, this.#text !== "");
    const again = button("Retry", "retry", () => this.around.retry());
    again.classList.add("retry");
    const why = element("div", {}, element("p", { class: "title" }, title), element("p", { class: "why" }, sentence(error)));
    this.#end.replaceChildren(element("div", { class: "broken" }, icon("alert"), why, again));
    this.#settle(this.#text === "" ? [] : [this.#copyButton()]);
    return `${title} ${sentence(error)}`;
  }

  /** @returns what is to be said of it. */
  #showEnd(reason: FinishReason | undefined): string {
    if (reason === "cancelled")
      this.#end.replaceChildren(element("p", { class: "note" }, this.#text === "" ? "Stopped before it began." : "Stopped."));
    if (reason === "length") this.#end.replaceChildren(element("p", { class: "note" }, "The answer reached its longest allowed length."));
    const again = button("Retry", "retry", () => this.around.retry());
    again.classList.add("retry");
    this.#settle(this.#text === "" ? [again] : [this.#copyButton(), again]);
    return reason === "cancelled" ? "Stopped." : "End of the answer.";
  }

  #settle(actions: HTMLElement[]): void {
    this.#waiting.replaceChildren();
    this.element.removeAttribute("aria-busy");
    this.#footer.replaceChildren(element("div", { class: "actions" }, ...actions), this.#readout);
  }

  #copyButton(): HTMLButtonElement {
    return copyButton("Copy the answer", () => this.#text, this.around.say);
  }

  #wait(why: string): void {
    const dots = element("span", { class: "dots", "aria-hidden": "true" }, element("i"), element("i"), element("i"));
    this.#waiting.replaceChildren(dots, why);
    this.around.grown();
  }

  #firstText(response: Response): void {
    this.#waiting.replaceChildren();
    for (const attempt of this.#earlier.querySelectorAll("details")) attempt.open = false;
    if (response.droppedTurns > 0) this.#leftOut.textContent = leftOut(response.droppedTurns);
    this.#readoutMs = 0;
    this.#footer.replaceChildren(element("div", { class: "actions" }), this.#readout);
  }

  #blockDone(block: readonly Element[]): void {
    this.#letCopy(block);
    for (const part of block) this.around.say(part.textContent ?? "");
  }

  #letCopy(block: readonly Element[]): void {
    for (const part of block)
      for (const code of part.matches(".code") ? [part] : part.querySelectorAll(".code")) {
        const source = code.querySelector("pre")?.textContent ?? "";
        code.querySelector(".caption")?.append(copyButton("Copy the code", () => source, this.around.say));
      }
  }

  /** Brings the figures up to date, a few times a second: more often nobody could read them. */
  #measure(response: Response, nowMs: number): void {
    if (nowMs - this.#readoutMs < readoutEveryMs) return;
    this.#readoutMs = nowMs;
    const figures = readout(response.measures);
    this.#readout.replaceChildren(
      ...figures.map(({ label, value, meaning }) => element("div", { title: meaning }, element("dt", {}, label), element("dd", {}, value))),
    );
  }
}

const readoutEveryMs = 250;
