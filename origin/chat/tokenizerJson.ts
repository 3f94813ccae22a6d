/**
 * A model's vocabulary as the `tokenizer.json` that Hugging Face's tokenizers reads. The pre-tokenizers' patterns are those of the
 * models' published tokenizer.json files; GGUF carries only their names.
 */
import { type GivenTokenizer, specialsPattern } from "./givenTokenizer.js";
import { TokenType, type Vocabulary, VocabularyError } from "./vocabulary.js";

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

interface PreTokenizer {
  normalizer: Json;
  preTokenizer: Json;
  /** A pre-token that is a token as a whole is not merged up to it. */
  ignoreMerges: boolean;
}

const byteLevel = (useRegex: boolean): Json => ({ type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: useRegex });
const digitByDigit: Json = { type: "Digits", individual_digits: true };
const splitBy = (pattern: string): Json => ({ type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false });
const sequence = (...pretokenizers: Json[]): Json => ({ type: "Sequence", pretokenizers });
/** The pattern of cl100k and its heirs; `digits` is the most digits in one piece. */
const cl100k = (digits: string): string =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

const gpt2: PreTokenizer = { normalizer: null, preTokenizer: byteLevel(true), ignoreMerges: false };
const smollm: PreTokenizer = { ...gpt2, preTokenizer: sequence(digitByDigit, byteLevel(true)) };
const llama3: PreTokenizer = {
  normalizer: null,
  preTokenizer: sequence(splitBy(cl100k("\\p{N}{1,3}")), byteLevel(false)),
  ignoreMerges: true,
};
const qwen2: PreTokenizer = {
  normalizer: { type: "NFC" },
  preTokenizer: sequence(splitBy(cl100k("\\p{N}")), byteLevel(false)),
  ignoreMerges: false,
};

const preTokenizers = new Map<string, PreTokenizer>([
  ["default", gpt2],
  ["gpt-2", gpt2],
  ["smollm", smollm],
  ["starcoder", smollm],
  ["llama-bpe", llama3],
  ["llama3", llama3],
  ["qwen2", qwen2],
  ["deepseek-r1-qwen", qwen2],
]);

/** The vocabulary as two tokenizers, as readGivenTokenizer() has them of a model that came with its own. */
export function madeTokenizer(vocabulary: Vocabulary): GivenTokenizer {
  const ids = [...vocabulary.tokens.keys()];
  const isType = (id: number, type: number): boolean => vocabulary.types[id] === type;
  const specials = ids.filter((id) => isType(id, TokenType.control) || isType(id, TokenType.userDefined));
  // Some models have runs of whitespace as tokens of their own; those mean nothing but themselves.
  const blanks = specials.filter((id) => isType(id, TokenType.userDefined) && (vocabulary.tokens[id] as string).trim() === "");
  return {
    template: tokenizerJson(vocabulary, specials) as { [key: string]: Json },
    content: tokenizerJson(vocabulary, blanks) as { [key: string]: Json },
    specials: specialsPattern(specials.map((id) => ({ content: vocabulary.tokens[id] as string, lstrip: false, rstrip: false }))),
    spacePrefix: vocabulary.kind === "llama" && vocabulary.addSpacePrefix ? "first" : "never",
  };
}

/**
 * @param added the tokens that are recognised wherever their text stands; all others come about by merging alone.
 * @throws VocabularyError naming a kind or pre-tokenizer that is not known.
 */
export function tokenizerJson(vocabulary: Vocabulary, added: readonly number[]): Json {
  const shape = { version: "1.0", truncation: null, padding: null, post_processor: null, decoder: null };
  const added_tokens = added.map((id) => ({
    id,
    content: vocabulary.tokens[id] as string,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }));
  switch (vocabulary.kind) {
    case "gpt2": {
      const known = preTokenizers.get(vocabulary.preTokenizer);
      if (!known)
        throw new VocabularyError(
          `the model's pre-tokenizer ${JSON.stringify(vocabulary.preTokenizer)} is none of ${[...preTokenizers.keys()].join(", ")}`,
        );
      const model = { ...bpe(vocabulary, new Set(added)), merges: vocabulary.merges, ignore_merges: known.ignoreMerges };
      return { ...shape, added_tokens, normalizer: known.normalizer, pre_tokenizer: known.preTokenizer, model };
    }
    case "llama": {
      const normalizer = { type: "Replace", pattern: { String: " " }, content: "\u2581" };
      const unk_token = vocabulary.tokens[vocabulary.unknownToken] ?? null;
      const model = {
        ...bpe(vocabulary, new Set(added)),
        merges: mergesByScore(vocabulary),
        unk_token,
        fuse_unk: true,
        byte_fallback: true,
      };
      return { ...shape, added_tokens, normalizer, pre_tokenizer: null, model };
    }
    default:
      throw new VocabularyError(`the model's tokenizer is of kind ${JSON.stringify(vocabulary.kind)}, not gpt2 or llama`);
  }
}

/** A control token that is not added is left out, so that no text can become one. The added ones need their ids here. */
function bpe(vocabulary: Vocabulary, added: ReadonlySet<number>): { [key: string]: Json } {
  const vocab: { [token: string]: Json } = {};
  for (const [id, token] of vocabulary.tokens.entries()) if (added.has(id) || vocabulary.types[id] !== TokenType.control) vocab[token] = id;
  return { type: "BPE", dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null, fuse_unk: false, vocab };
}

/**
 * SentencePiece merges whichever neighbours make the piece of the highest score. As a list of merges: every way to cut a piece into
 * two that exist too, by the piece's score; cuts of one piece follow the longer left part.
 */
function mergesByScore(vocabulary: Vocabulary): Json {
  const mergeable = (id: number): boolean => vocabulary.types[id] === TokenType.normal || vocabulary.types[id] === TokenType.userDefined;
  const known = new Set(vocabulary.tokens.filter((_, id) => mergeable(id)));
  const cuts: { left: string; right: string; score: number }[] = [];
  for (const [id, token] of vocabulary.tokens.entries()) {
    if (!mergeable(id)) continue;
    const score = vocabulary.scores[id];
    if (score === undefined) throw new VocabularyError(`the model's token ${id} has no score, which its tokenizer kind "llama" needs`);
    const points = [...token];
    for (let at = points.length - 1; at > 0; at--) {
      const left = points.slice(0, at).join("");
      const right = points.slice(at).join("");
      if (known.has(left) && known.has(right)) cuts.push({ left, right, score });
    }
  }
  return cuts.sort((a, b) => b.score - a.score).map(({ left, right }) => [left, right]);
}
