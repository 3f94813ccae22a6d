/**
 * A conversation through the model's chat template, kept in pieces: what the template wrote, and what people wrote. The template is
 * rendered with a sentinel in place of each content and cut at the sentinels; a rendering of the real contents then has to be the
 * same text. So a content can never pass for the template's own words, and a template that edits contents is found out.
 */
import { randomBytes } from "node:crypto";
import { Template } from "@huggingface/jinja";
import { MillraceError } from "../../shared/errors.js";
import type { ChatMessage } from "../../shared/protocol.js";
import type { Segment } from "./tokenizer.js";
import { type Vocabulary, VocabularyError } from "./vocabulary.js";

/** What templates are seen to do to a content, the likeliest first. Anything else is refused. */
const edits: readonly ((content: string) => string)[] = [
  (content) => content,
  (content) => content.trim(),
  (content) => content.trimStart(),
  (content) => content.trimEnd(),
];

export class ChatTemplate {
  readonly #template: Template;
  readonly #constants: Record<string, unknown>;

  /** @throws VocabularyError where the model has no template or one that cannot be read. */
  constructor(vocabulary: Vocabulary) {
    if (vocabulary.chatTemplate === "")
      throw new VocabularyError("the model's file has no chat template (tokenizer.chat_template): it is not made for conversations");
    try {
      this.#template = new Template(vocabulary.chatTemplate);
    } catch (error) {
      throw new VocabularyError(`the model's chat template cannot be read: ${sentence(error)}`);
    }
    this.#constants = {
      add_generation_prompt: true,
      bos_token: vocabulary.tokens[vocabulary.bosToken] ?? "",
      eos_token: vocabulary.tokens[vocabulary.eosToken] ?? "",
      tools: null,
    };
  }

  /** @throws MillraceError `field_invalid` where the template refuses the conversation, or would change what was said in it. */
  render(messages: readonly ChatMessage[]): Segment[] {
    const contents = messages.map(([, content]) => content);
    const mark = unspoken(randomBytes(12).toString("hex"));
    // An empty content stays empty: templates ask whether there is one.
    const sentinels = contents.map((content, index) => (content === "" ? "" : mark + unspoken(index.toString(16).padStart(4, "0"))));
    const outline = this.#text(messages, sentinels).split(new RegExp(`${mark}([${unspoken("0")}-${unspoken("f")}]{4})`));
    const direct = this.#text(messages, contents);
    const segments: Segment[] = [{ from: "template", text: outline[0] as string }];
    let at = (outline[0] as string).length;
    const seen = new Set<number>();
    for (let index = 1; index < outline.length; index += 2) {
      const message = Number.parseInt(spoken(outline[index] as string), 16);
      const after = outline[index + 1] as string;
      const content = edits.map((edit) => edit(contents[message] as string)).find((text) => direct.startsWith(text + after, at));
      if (content === undefined) throw edited(message);
      segments.push({ from: "content", text: content }, { from: "template", text: after });
      at += content.length + after.length;
      seen.add(message);
    }
    const left = sentinels.findIndex((sentinel, index) => sentinel !== "" && !seen.has(index));
    if (left >= 0) throw edited(left);
    if (segments.map(({ text }) => text).join("") !== direct) throw edited(messages.length - 1);
    return segments.filter(({ text }) => text !== "");
  }

  #text(messages: readonly ChatMessage[], contents: readonly string[]): string {
    try {
      return this.#template.render({
        ...this.#constants,
        messages: messages.map(([role], index) => ({ role, content: contents[index] })),
      });
    } catch (error) {
      throw new MillraceError("field_invalid", `the model's chat template refuses this conversation: ${sentence(error)}`);
    }
  }
}

/** Hex digits as private-use characters: no template looks for those in a content, as it may for a letter. */
function unspoken(hex: string): string {
  return Array.from(hex, (digit) => String.fromCharCode(0xe000 + Number.parseInt(digit, 16))).join("");
}

function spoken(digits: string): string {
  return Array.from(digits, (digit) => (digit.charCodeAt(0) - 0xe000).toString(16)).join("");
}

function edited(message: number): MillraceError {
  return new MillraceError(
    "field_invalid",
    `the model's chat template would change or leave out the content of messages[${message}], which this origin does not do to what was said`,
  );
}

function sentence(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
