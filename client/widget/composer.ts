import { icon } from "./dom.js";

export interface ComposerActions {
  ask(question: string): void;
  stop(): void;
}

/** The box one writes in, and its one button: Send, or Stop while an answer arrives. */
export class Composer {
  #answering = false;

  constructor(
    private readonly form: HTMLFormElement,
    private readonly box: HTMLTextAreaElement,
    private readonly button: HTMLButtonElement,
    private readonly actions: ComposerActions,
  ) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#answering) actions.stop();
      else this.#send();
    });
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.#answering) this.#send();
    });
    box.addEventListener("input", () => this.#show());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#answering) actions.stop();
    });
    this.#show();
  }

  set answering(answering: boolean) {
    this.#answering = answering;
    this.#show();
  }

  /** Where a keyboard is at hand the box, elsewhere the button: focusing the box would raise a keyboard over the answer. */
  focus(): void {
    if (!this.focusBox()) this.button.focus();
  }

  /** Puts the cursor into the box where a keyboard is at hand. @returns whether it is. */
  focusBox(): boolean {
    const hasKeyboard = matchMedia("(pointer: fine)").matches;
    if (hasKeyboard) this.box.focus();
    return hasKeyboard;
  }

  #send(): void {
    const question = this.box.value.trim();
    if (question === "") return;
    this.box.value = "";
    this.actions.ask(question);
  }

  #show(): void {
    const label = this.#answering ? "Stop" : "Send";
    if (this.button.title !== label) {
      this.button.replaceChildren(icon(this.#answering ? "stop" : "send"));
      this.button.title = label;
      this.button.setAttribute("aria-label", label);
    }
    // Where CSS cannot yet size the box by its text, its lines do.
    if (!CSS.supports("field-sizing", "content")) this.box.rows = Math.min(this.box.value.split("\n").length, rowsMax);
    this.form.dataset.state = this.#answering ? "answering" : "idle";
    this.form.toggleAttribute("data-empty", this.box.value.trim() === "");
  }
}

const rowsMax = 8;
