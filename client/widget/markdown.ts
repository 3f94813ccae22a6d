/**
 * Markdown to elements that are safe to show. There are two walls: marked is told to print raw HTML as text and images as their
 * alternative text, and DOMPurify then drops whatever is not on a short list. Nothing that comes out loads anything.
 */
import DOMPurify, { type Config } from "dompurify";
import { Marked, type Token } from "marked";
import { element } from "./dom.js";

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escaped(text),
    image: ({ text, href }) => escaped(text || href),
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    // The page's own headings are levels 1 and 2.
    heading({ tokens, depth }) {
      const level = Math.min(depth + 2, 6);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
  },
});

const allowed = {
  ALLOWED_TAGS: [
    ...["p", "br", "strong", "em", "del", "code", "pre", "blockquote", "ul", "ol", "li", "h3", "h4", "h5", "h6", "hr", "a"],
    ...["table", "thead", "tbody", "tr", "th", "td"],
  ],
  ALLOWED_ATTR: ["href", "start", "align", "class"],
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  // DOMPurify holds every other attribute to the rule for addresses.
  ADD_URI_SAFE_ATTR: ["start", "align"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true as const,
} satisfies Config & { RETURN_DOM_FRAGMENT: true };

/** The top-level blocks of a text; each has its source in `raw`. */
export function blocksOf(source: string): Token[] {
  return marked.lexer(source);
}

/** The elements of some blocks. */
export function render(blocks: readonly Token[]): DocumentFragment {
  const fragment = DOMPurify.sanitize(marked.parser([...blocks]), allowed);
  const codeBlocks = [...fragment.querySelectorAll("pre")].map((pre) => ({ pre, language: languageOf(pre) }));
  // Classes are for this page's own use: none that a text brought along stays.
  for (const styled of fragment.querySelectorAll("[class]")) styled.removeAttribute("class");
  for (const { pre, language } of codeBlocks) frame(pre, language);
  for (const table of fragment.querySelectorAll("table")) wrap(table, element("div", { class: "table", ...scrollable("Table") }));
  for (const link of fragment.querySelectorAll("a")) {
    link.rel = "noopener noreferrer";
    link.target = "_blank";
  }
  return fragment;
}

function languageOf(pre: HTMLPreElement): string {
  return /^language-([\w+#.-]{1,24})/.exec(pre.firstElementChild?.className ?? "")?.[1] ?? "text";
}

/** Gives a code block a bar with its language, in which its copy button comes to stand. */
function frame(pre: HTMLPreElement, language: string): void {
  const block = wrap(pre, element("div", { class: "code" }, element("div", { class: "caption" }, element("span", {}, language))));
  for (const [name, value] of Object.entries(scrollable(`Code, ${language}`))) pre.setAttribute(name, value);
  block.append(pre);
}

/** What lets a keyboard scroll a part of the page that is wider than its place. */
function scrollable(label: string): Record<string, string> {
  return { tabindex: "0", role: "region", "aria-label": label };
}

function wrap(inner: Element, outer: HTMLElement): HTMLElement {
  inner.replaceWith(outer);
  outer.append(inner);
  return outer;
}

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
