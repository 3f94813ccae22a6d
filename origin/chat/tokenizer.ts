/**
 * Text to token ids, on a thread of the tokenizers library: the event loop only collects the ids. What a user wrote and what the
 * chat template wrote are told apart: only in the template's text are special tokens recognised.
 */
import { Tokenizer } from "tokenizers";
import { readGivenTokenizer, refuseWithoutTokenizer, type SpacePrefix } from "./givenTokenizer.js";
import { type Json, madeTokenizer } from "./tokenizerJson.js";
import { type Vocabulary, VocabularyError } from "./vocabulary.js";

/** A piece of a rendered conversation, in order. */
export interface Segment {
  readonly from: "template" | "content";
  readonly text: string;
}

/** Ids of segments seen before: fitting a long conversation encodes each of its texts once. */
export type SegmentCache = Map<string, readonly number[]>;

/** SentencePiece's written space: unlike a real one, no added token takes it away with the whitespace around it. */
const spaceMark = "\u2581";

// One encode stays on one thread: the library would otherwise spread over every core and take them from the engine's pool.
process.env.TOKENIZERS_PARALLELISM ??= "false";

export class ChatTokenizer {
  readonly #template: Tokenizer;
  readonly #content: Tokenizer;
  readonly #spacePrefix: SpacePrefix;
  /** Finds the tokens that a text may be cut at. */
  readonly #specials: RegExp | undefined;
  readonly #bos: number | undefined;

  /** Takes some 0.2 s for 50,000 tokens. @throws VocabularyError naming a kind or pre-tokenizer that is not known. */
  constructor(vocabulary: Vocabulary) {
    refuseWithoutTokenizer(vocabulary);
    const { template, content, specials, spacePrefix } =
      vocabulary.tokenizerJson === undefined ? madeTokenizer(vocabulary) : readGivenTokenizer(vocabulary.tokenizerJson);
    this.#template = tokenizerOf(template);
    this.#content = tokenizerOf(content);
    this.#specials = specials;
    this.#spacePrefix = spacePrefix;
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

  /** SentencePiece models see a space before a text's first word; some also before the first word after each special token. */
  #withSpacePrefix(segments: readonly Segment[]): readonly Segment[] {
    if (this.#spacePrefix === "never") return segments;
    let begins = true;
    return segments.map(({ from, text }) => {
      const cut = from === "template" ? this.#cutAtSpecials(text) : [{ text, special: false }];
      let prefixed = "";
      for (const part of cut) {
        prefixed += begins && !part.special ? spaceMark + part.text : part.text;
        begins = part.special && this.#spacePrefix === "always";
      }
      return { from, text: prefixed };
    });
  }

  #cutAtSpecials(text: string): { text: string; special: boolean }[] {
    const parts: { text: string; special: boolean }[] = [];
    let at = 0;
    for (const { 0: special, index } of this.#specials ? text.matchAll(this.#specials) : []) {
      if (index > at) parts.push({ text: text.slice(at, index), special: false });
      parts.push({ text: special, special: true });
      at = index + special.length;
    }
    if (at < text.length) parts.push({ text: text.slice(at), special: false });
    return parts;
  }
}

function tokenizerOf(json: Json): Tokenizer {
  try {
    return Tokenizer.fromString(JSON.stringify(json));
  } catch (error) {
    throw new VocabularyError(`the model's tokenizer cannot be built: ${error instanceof Error ? error.message : String(error)}`);
  }
}

function keyOf({ from, text }: Segment): string {
  return from === "template" ? `t${text}` : `c${text}`;
}
