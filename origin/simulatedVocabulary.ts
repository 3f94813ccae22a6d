/** The simulated inference's own small vocabulary, and what the tokens of any stand for. */
import { TokenType, type Vocabulary } from "./chat/vocabulary.js";

const words = (
  " the| a| mill| race| water| wheel| turns| slowly| quickly| under| over| old| new| stone| stones| river| bridge| and| but| then" +
  "| once| again| grain| flour| baker| bread| morning| evening| light| shadow| bell| rope| gate| opens| closes| hears| sees| runs" +
  "| waits| for| with| without| its| her| his| their|ing|ed|s|ly|,|.|;|\n| caf\u00e9| M\u00fchle| \u6c34\u8eca| \u043c\u0435\u043b\u044c\u043d\u0438\u0446\u0430| \u0637\u0627\u062d\u0648\u0646\u0629" +
  "| \u{1f30a}| \u{1f468}\u200d\u{1f33e}"
).split("|");
/** Parts of code points: what begins one, and what ends it. */
const parts = [
  [0x20, 0xf0, 0x9f],
  [0x20, 0xc3],
  [0x20, 0xe6, 0xb0],
  [0xf0, 0x9f, 0x8c],
  [0x8c, 0xbe],
  [0x8d, 0x9e],
  [0xa9],
  [0xb4],
  [0x8a],
];

/** Tokens of bytes and of words, and the ChatML template. Prompts are read byte by byte: there are no merges. No model's file is needed. */
export function simulatedVocabulary(): Vocabulary {
  const controls = ["<|im_start|>", "<|im_end|>"];
  const encoder = new TextEncoder();
  const written = [...words.map((word) => [...encoder.encode(word)]), ...parts].map((bytes) =>
    bytes.map((byte) => alphabet[byte]).join(""),
  );
  const tokens = [...controls, ...alphabet, ...written.filter((token) => token.length > 1)];
  return {
    kind: "gpt2",
    preTokenizer: "gpt-2",
    tokens,
    types: tokens.map((_, id) => (id < controls.length ? TokenType.control : TokenType.normal)),
    scores: [],
    merges: [],
    chatTemplate:
      "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}" +
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    bosToken: 0,
    eosToken: 1,
    unknownToken: -1,
    addBos: false,
    addSpacePrefix: false,
  };
}

/** Byte-level BPE writes a byte as a printable character: itself where Latin-1 prints it, else one from U+0100 on. */
const alphabet: readonly string[] = (() => {
  const isPrintable = (byte: number): boolean => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(isPrintable(byte) ? byte : next++));
})();
const byteOf = new Map(alphabet.map((character, byte) => [character, byte]));
const encoder = new TextEncoder();

/** Each token's bytes in an answer, as the engine has them; none for control tokens. */
export function tokenBytes({ kind, tokens, types }: Pick<Vocabulary, "kind" | "tokens" | "types">): Uint8Array[] {
  return tokens.map((token, id) => {
    const type = types[id];
    if (type === TokenType.control || type === TokenType.unused) return new Uint8Array();
    if (kind === "llama" && type === TokenType.byte) return Uint8Array.of(Number.parseInt(token.slice(3, 5), 16));
    if (kind === "llama") return encoder.encode(token.replaceAll("\u2581", " "));
    // Byte-level vocabularies have the tokens that were added to them as they are.
    if (type === TokenType.userDefined) return encoder.encode(token);
    return Uint8Array.from(
      [...token].flatMap((character) => {
        const byte = byteOf.get(character);
        return byte === undefined ? [...encoder.encode(character)] : [byte];
      }),
    );
  });
}
