/** A model's own tokenizer.json: conversations in pieces come to the ids that the library gives the whole text, and people's words stay words. */
import { Tokenizer } from "tokenizers";
import { describe, expect, test } from "vitest";
import { readGivenTokenizer } from "../../origin/chat/givenTokenizer.js";
import { ChatTokenizer, type Segment } from "../../origin/chat/tokenizer.js";
import { TokenType, type Vocabulary, VocabularyError } from "../../origin/chat/vocabulary.js";

type Json = Record<string, unknown>;

const added = (id: number, content: string, more: Json = {}): Json => ({
  id,
  content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
  special: true,
  ...more,
});

/** Pieces `words`, each made by merging its first letters one by one, behind the special tokens. */
function pieces(words: string[], letters: string, byteFallback: boolean): Json {
  const tokens = ["<unk>", "<s>", "</s>", "<|end|>", ...(byteFallback ? Array.from({ length: 256 }, (_, byte) => byteName(byte)) : [])];
  const merges: [string, string][] = [];
  tokens.push(...new Set(letters));
  for (const word of words)
    for (let length = 2; length <= word.length; length++) {
      if (tokens.includes(word.slice(0, length))) continue;
      merges.push([word.slice(0, length - 1), word[length - 1] as string]);
      tokens.push(word.slice(0, length));
    }
  const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
  return {
    type: "BPE",
    dropout: null,
    unk_token: byteFallback ? "<unk>" : null,
    fuse_unk: byteFallback,
    byte_fallback: byteFallback,
    vocab,
    merges,
  };
}

const byteName = (byte: number): string => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
const letters = "\u2581abcdefghijklmnopqrstuvwxyz[]/\n<|>";
const words = ["\u2581hello", "\u2581the", "world", "\u2581\u2581", "end"];
const special = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), added(3, "<|end|>", { rstrip: true })];
const spaces = { type: "Replace", pattern: { String: " " }, content: "\u2581" };

const kinds: Record<string, Json> = {
  "a normalizer that prepends": {
    normalizer: { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "\u2581" }, spaces] },
    pre_tokenizer: null,
  },
  "a Metaspace before the first word": {
    normalizer: null,
    pre_tokenizer: { type: "Metaspace", replacement: "\u2581", prepend_scheme: "first", split: false },
  },
  "no prefix at all": { normalizer: spaces, pre_tokenizer: null },
};

const post_processor = {
  type: "TemplateProcessing",
  single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
  pair: [],
  special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
};
const whole = (kind: Json, model: Json, extra: Json[] = []): Json => ({
  version: "1.0",
  truncation: { max_length: 3, strategy: "LongestFirst", stride: 0, direction: "Right" },
  padding: null,
  added_tokens: [...special, ...extra],
  ...kind,
  post_processor,
  decoder: null,
  model,
});

function vocabularyOf(json: Json): Vocabulary {
  const { vocab } = json.model as { vocab: Record<string, number> };
  const tokens = Object.keys(vocab);
  return {
    kind: "llama",
    preTokenizer: "default",
    tokens,
    types: tokens.map((_, id) => (id < 4 ? TokenType.control : TokenType.normal)),
    scores: [],
    merges: [],
    chatTemplate: "",
    tokenizerJson: JSON.stringify(json),
    bosToken: 1,
    eosToken: 2,
    unknownToken: 0,
    addBos: false,
    addSpacePrefix: false,
  };
}

const template = (text: string): Segment => ({ from: "template", text });
const content = (text: string): Segment => ({ from: "content", text });

/** Conversations whose pieces meet where no merge could join them. */
const conversations: Segment[][] = [
  [content("hello the world")],
  [
    template("<s>[a]"),
    content("hello"),
    template(" [/a]"),
    content(" the end"),
    template("</s><s>[a]"),
    content("world"),
    template("[/a]"),
  ],
  [template("<s>"), content("world"), template("<|end|>\n"), content("hello"), template("<|end|>\nthe")],
  [template("<s>the"), content("\nhello"), template("\n")],
];

describe.each(Object.keys(kinds))("with %s", (name) => {
  const json = whole(kinds[name] as Json, pieces(words, letters, true));
  const library = Tokenizer.fromString(JSON.stringify({ ...json, truncation: null }));
  const tokenizer = new ChatTokenizer(vocabularyOf(json));

  // Nothing in front, nothing cut off, spaces where the library puts them.
  test.each(conversations.map((segments) => [segments.map(({ text }) => text).join(""), segments] as const))(
    "%j in pieces",
    async (text, segments) => {
      const ids = await tokenizer.encode(segments);
      expect([...ids]).toEqual([...(await library.encode(text, null, { addSpecialTokens: false })).getIds()]);
    },
  );

  test("a special token in a content is its letters", async () => {
    const ids = [...(await tokenizer.encode([template("<s>"), content("<s></s><|end|><unk>")]))];
    expect(ids[0]).toBe(1);
    expect(ids.slice(1).filter((id) => id <= 3)).toEqual([]);
  });
});

describe("byte-level", () => {
  // Blanks are tokens of their own also where people write them; other added tokens are not.
  test("added blanks are kept for contents, added words are not", async () => {
    const model = pieces(["hello"], "abcdefghijklmnopqrstuvwxyz\u0120\u010a<|>", false);
    const blank = added(200, "\n\n\n", { special: false });
    const word = added(201, "<tool>", { special: false });
    const json = whole(
      { normalizer: null, pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true } },
      model,
      [blank, word],
    );
    const tokenizer = new ChatTokenizer(vocabularyOf(json));
    expect([...(await tokenizer.encode([template("<tool>\n\n\n")]))]).toEqual([201, 200]);
    const ids = [...(await tokenizer.encode([content("<tool>\n\n\nhello")]))];
    expect(ids).toContain(200);
    expect(ids).not.toContain(201);
  });
});

describe("what cannot be used is refused with a sentence", () => {
  test.each([
    ["{", /cannot be read/],
    ["[]", /no JSON object/],
    ["{}", /no model with a vocab/],
    [JSON.stringify({ model: { type: "BPE", vocab: { a: 0 }, merges: [["b", "c"]] } }), /cannot be built/],
  ])("%s", (text, sentence) => {
    expect(() => new ChatTokenizer({ ...vocabularyOf(whole({}, pieces([], "a", true))), tokenizerJson: text })).toThrow(sentence);
  });

  test("a folder without a tokenizer", () => {
    const { tokenizerJson: _, ...without } = vocabularyOf(whole({}, pieces([], "a", true)));
    expect(() => new ChatTokenizer({ ...without, kind: "none" })).toThrow(VocabularyError);
  });

  // A prefix that is written as two things at once would be added twice.
  test("the prefix is taken out of a sequence", () => {
    const sequence = {
      type: "Sequence",
      pretokenizers: [{ type: "Metaspace", replacement: "\u2581", prepend_scheme: "always", split: true }],
    };
    const given = readGivenTokenizer(JSON.stringify(whole({ normalizer: null, pre_tokenizer: sequence }, pieces([], "a", true))));
    expect(given.spacePrefix).toBe("always");
    expect(JSON.stringify(given.template)).not.toContain('"always"');
  });
});
