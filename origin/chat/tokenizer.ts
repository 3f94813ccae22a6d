/**
 * Text to token ids, on a thread of the tokenizers library: the event loop only collects the ids. What a user wrote and what the
 * chat template wrote are told apart: only in the template's text are special tokens recognised.
 */
import { Tokenizer } from "tokenizers";
import { tokenizerJson } from "./tokenizerJson.js";
import { TokenType, type Vocabulary } from "./vocabulary.js";

/** A piece of a rendered conversation, in order. */
export interface Segment {
  readonly from: "template" | "content";
  readonly text: string;
}

/** Ids of segments seen before: fitting a long conversation encodes each of its texts once. */
export type SegmentCache = Map<string, readonly number[]>;

// One encode stays on one thread: the library would otherwise spread over every core and take them from the engine's pool.
process.env.TOKENIZERS_PARALLELISM ??= "false";

export class ChatTokenizer {
  readonly #template: Tokenizer;
  readonly #content: Tokenizer;
  readonly #spacePrefix: boolean;
  readonly #specials: readonly string[];
  readonly #bos: number | undefined;

  /** Takes some 0.2 s for 50,000 tokens. @throws VocabularyError naming a kind or pre-tokenizer that is not known. */
  constructor(vocabulary: Vocabulary) {
    const ids = [...vocabulary.tokens.keys()];
    const isType = (id: number, type: number): boolean => vocabulary.types[id] === type;
    const specials = ids.filter((id) => isType(id, TokenType.control) || isType(id, TokenType.userDefined));
    // Some models have runs of whitespace as tokens of their own; those mean nothing but themselves.
    const blanks = specials.filter((id) => isType(id, TokenType.userDefined) && (vocabulary.tokens[id] as string).trim() === "");
    this.#template = Tokenizer.fromString(JSON.stringify(tokenizerJson(vocabulary, specials)));
    this.#content = Tokenizer.fromString(JSON.stringify(tokenizerJson(vocabulary, blanks)));
    this.#specials = specials.map((id) => vocabulary.tokens[id] as string);
    this.#spacePrefix = vocabulary.kind === "llama" && vocabulary.addSpacePrefix;
    this.#bos = vocabulary.addBos && vocabulary.bosToken >= 0 ? vocabulary.bosToken : undefined;
  }

  /** The whole prompt's ids. A model that wants a begin-of-text token gets one, where its template wrote none. */
  async encode(segments: readonly Segment[], cache: SegmentCache = new Map()): Promise<Int32Array> {
    const prefixed = this.#withSpacePrefix(segments.filter(({ text }) => text !== ""));
    await Promise.all([this.#fill("template", prefixed, cache), this.#fill("content", prefixed, cache)]);
    const parts = prefixed.map((segment) => cache.get(keyOf(segment)) as readonly number[]);
    const bos = this.#bos !== undefined && parts[0]?.[0] !== this.#bos ? [this.#bos] : [];
    const ids = new Int32Array(parts.reduce((count, part) => count + part.length, bos.length));
    ids.set(bos);
    let at = bos.length;
    for (const part of parts) {
      ids.set(part, at);
      at += part.length;
    }
    return ids;
  }

  async #fill(from: Segment["from"], segments: readonly Segment[], cache: SegmentCache): Promise<void> {
    const missing = new Set(segments.filter((segment) => segment.from === from && !cache.has(keyOf(segment))).map(({ text }) => text));
    if (missing.size === 0) return;
    const texts = [...missing];
    const encodings = await (from === "template" ? this.#template : this.#content).encodeBatch(texts, { addSpecialTokens: false });
    for (const [index, encoding] of encodings.entries()) cache.set(keyOf({ from, text: texts[index] as string }), encoding.getIds());
  }

  /** SentencePiece models see a space before a text's first word, unless the text begins with a special token. */
  #withSpacePrefix(segments: readonly Segment[]): readonly Segment[] {
    const first = segments[0];
    if (!this.#spacePrefix || !first) return segments;
    if (first.from === "template" && this.#specials.some((special) => first.text.startsWith(special))) return segments;
    return [{ from: first.from, text: ` ${first.text}` }, ...segments.slice(1)];
  }
}

function keyOf({ from, text }: Segment): string {
  return from === "template" ? `t${text}` : `c${text}`;
}
