import type { Token } from "marked";
import { blocksOf, render } from "./markdown.js";
import { mendTail } from "./mend.js";

/**
 * Shows Markdown while it arrives. A block that another one follows can no longer change: it is rendered for good, and only the last
 * one is rendered again as it grows.
 */
export class LiveMarkdown {
  #tail = "";
  readonly #growing = document.createElement("div");

  /** @param onBlock called with the elements of each block once it is complete, in order. */
  constructor(
    private readonly container: HTMLElement,
    private readonly onBlock: (block: readonly Element[]) => void,
  ) {
    this.#growing.className = "growing";
    container.append(this.#growing);
  }

  append(text: string): void {
    this.#tail += text.replaceAll("\r", "");
  }

  /** Brings the elements up to what has been appended. */
  show(): void {
    this.#settle(blocksOf(this.#tail));
    this.#growing.replaceChildren(render(blocksOf(mendTail(this.#tail))));
  }

  /** Renders the last block as it stands; nothing follows. */
  finish(): void {
    this.#growing.remove();
    for (const block of blocksOf(this.#tail)) this.#keep(block);
    this.#tail = "";
  }

  #settle(blocks: readonly Token[]): void {
    const last = blocks.findLastIndex(({ type }) => type !== "space");
    const done = blocks.slice(0, Math.max(last, 0));
    const source = done.map(({ raw }) => raw).join("");
    // The lexer's blocks are cut off by their source; if it had rewritten that, they stay in the part that still grows.
    if (done.length === 0 || !this.#tail.startsWith(source)) return;
    for (const block of done) this.#keep(block);
    this.#tail = this.#tail.slice(source.length);
  }

  #keep(block: Token): void {
    const fragment = render([block]);
    const elements = [...fragment.children];
    if (this.#growing.parentNode) this.#growing.before(fragment);
    else this.container.append(fragment);
    if (elements.length > 0) this.onBlock(elements);
  }
}
