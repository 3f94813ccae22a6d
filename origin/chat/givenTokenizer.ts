/**
 * A model's own tokenizer.json, as two tokenizers: one for what the chat template wrote, which knows all added tokens, and one for what
 * people wrote, which knows none but blanks. Neither puts anything in front of a text; SentencePiece's space is told of instead, since
 * only who has the whole conversation knows where a text begins.
 */
import type { Json } from "./tokenizerJson.js";
import { type Vocabulary, VocabularyError } from "./vocabulary.js";

type JsonObject = { [key: string]: Json };

/** Where a space comes before a word: nowhere, at the text's start, or also after each added token. */
export type SpacePrefix = "never" | "first" | "always";

interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  lstrip: boolean;
  rstrip: boolean;
}

export interface GivenTokenizer {
  /** For the tokenizers library. */
  template: JsonObject;
  content: JsonObject;
  /** Added tokens that are more than blanks, with the whitespace that they take with them. */
  specials: RegExp | undefined;
  spacePrefix: SpacePrefix;
}

/** @throws VocabularyError where it is no tokenizer that can be taken apart so. */
export function readGivenTokenizer(text: string): GivenTokenizer {
  const json = parse(text);
  const model = json.model;
  if (!isObject(model) || !isObject(model.vocab)) throw new VocabularyError("the model's tokenizer.json has no model with a vocab");
  const added = (Array.isArray(json.added_tokens) ? json.added_tokens : []).filter(isObject);
  const { json: bare, spacePrefix } = withoutPrefix({ ...json, truncation: null, padding: null, post_processor: null });
  const isBlank = (token: JsonObject): boolean => token.special !== true && String(token.content).trim() === "";
  const blanks = added.filter(isBlank);
  const specials = added.filter((token) => !isBlank(token)) as unknown as AddedToken[];
  return {
    template: { ...bare, model: { ...model, vocab: withAdded(model.vocab, added) } },
    content: { ...bare, added_tokens: blanks, model: { ...model, vocab: withAdded(withoutSpecials(model, specials), blanks) } },
    specials: specialsPattern(specials),
    spacePrefix,
  };
}

/** A vocabulary that is used for token ids alone has no tokenizer at all. */
export function refuseWithoutTokenizer(vocabulary: Vocabulary): void {
  if (vocabulary.kind === "none")
    throw new VocabularyError("the model's folder has no tokenizer.json: it takes token ids, but no conversation");
}

function parse(text: string): JsonObject {
  try {
    const json = JSON.parse(text) as Json;
    if (isObject(json)) return json;
  } catch (error) {
    throw new VocabularyError(`the model's tokenizer.json cannot be read: ${(error as Error).message}`);
  }
  throw new VocabularyError("the model's tokenizer.json is no JSON object");
}

/** No text may become a special token by merging. The unknown token has to stay. */
function withoutSpecials(model: JsonObject, specials: readonly AddedToken[]): JsonObject {
  const vocab = { ...(model.vocab as JsonObject) };
  for (const { content, special } of specials) if (special && content !== model.unk_token) delete vocab[content];
  return vocab;
}

/** The library numbers added tokens that the vocabulary lacks anew, whatever numbers they have. */
function withAdded(vocab: JsonObject, added: readonly JsonObject[]): JsonObject {
  const all = { ...vocab };
  for (const { content, id } of added) all[String(content)] ??= id as number;
  return all;
}

/** What finds added tokens in a text, with the whitespace that they take with them. */
export function specialsPattern(specials: readonly Pick<AddedToken, "content" | "lstrip" | "rstrip">[]): RegExp | undefined {
  if (specials.length === 0) return undefined;
  // Of two that begin alike, the longer one is meant.
  const longestFirst = [...specials].sort((a, b) => b.content.length - a.content.length);
  const patterns = longestFirst.map(
    ({ content, lstrip, rstrip }) => (lstrip ? "\\s*" : "") + content.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&") + (rstrip ? "\\s*" : ""),
  );
  return new RegExp(patterns.join("|"), "gu");
}

/** The prefix is written in one of two ways: a normalizer that prepends, for every text between added tokens, or the Metaspace's scheme. */
function withoutPrefix(json: JsonObject): { json: JsonObject; spacePrefix: SpacePrefix } {
  let spacePrefix: SpacePrefix = "never";
  const normalizer = without(json.normalizer ?? null, "normalizers", (each) => {
    if (each.type !== "Prepend") return each;
    spacePrefix = "always";
    return undefined;
  });
  const pre_tokenizer = without(json.pre_tokenizer ?? null, "pretokenizers", (each) => {
    if (each.type !== "Metaspace") return each;
    const scheme = each.prepend_scheme ?? (each.add_prefix_space === false ? "never" : "always");
    if (scheme === "first" || scheme === "always") spacePrefix = scheme;
    return { ...each, prepend_scheme: "never" };
  });
  return { json: { ...json, normalizer, pre_tokenizer }, spacePrefix };
}

/** A part, or a sequence of parts under `key`, with each part replaced or taken out. */
function without(part: Json, key: string, change: (part: JsonObject) => JsonObject | undefined): Json {
  if (!isObject(part)) return part;
  const parts = part[key];
  if (part.type !== "Sequence" || !Array.isArray(parts)) return change(part) ?? null;
  const kept = parts.map((each) => without(each, key, change)).filter((each) => each !== null);
  return kept.length === 0 ? null : { ...part, [key]: kept };
}

function isObject(json: Json | undefined): json is JsonObject {
  return typeof json === "object" && json !== null && !Array.isArray(json);
}
