/** What a tokenizer and a chat template are built from, as a model's file has it; the engine's binding gives the same shape. */
export interface Vocabulary {
  /** `gpt2`: byte-level BPE with merges. `llama`: SentencePiece pieces with scores. `none`: token ids alone. */
  kind: string;
  /** The pre-tokenizer's name, e.g. `smollm`. */
  preTokenizer: string;
  tokens: string[];
  /** Per token a TokenType. */
  types: ArrayLike<number>;
  /** Per token; empty where the kind has none. */
  scores: ArrayLike<number>;
  /** `"left right"`, best first; empty where the kind has none. */
  merges: string[];
  chatTemplate: string;
  /** Hugging Face's tokenizer.json, where the model came with one: then this is the tokenizer. */
  tokenizerJson?: string;
  /** -1 where the file names none. */
  bosToken: number;
  eosToken: number;
  unknownToken: number;
  addBos: boolean;
  addSpacePrefix: boolean;
}

export const TokenType = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** The model's file asks for something that this origin cannot do; the message names it. */
export class VocabularyError extends Error {
  override readonly name = "VocabularyError";
}

/** Whether an answer may be made of this token: it is there, and stands for text. */
export function isText(vocabulary: Pick<Vocabulary, "types">, token: number): boolean {
  const type = vocabulary.types[token];
  return type === TokenType.normal || type === TokenType.userDefined || type === TokenType.byte;
}
