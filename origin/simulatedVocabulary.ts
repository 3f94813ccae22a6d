/** What the simulated inference says: its own small vocabulary, and for any vocabulary which token comes after which. */
import { TokenType, type Vocabulary } from "./chat/vocabulary.js";

/** Of tokens that split a code point, each is drawn so much more often than others: what is rare in text is to be common in tests. */
const splitShare = 5;

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

/** Which token is said next, and what bytes it stands for. */
export class Speech {
  /** [token], empty where it stands for no text. */
  readonly bytes: readonly Uint8Array[];
  /** Tokens to draw from where a code point has ended; those that begin one without ending it stand in it several times. */
  readonly #fresh: number[] = [];
  /** Those that end a code point which lacks so many bytes, and nothing else. */
  readonly #closing: number[][] = [[], [], [], []];

  constructor(vocabulary: Pick<Vocabulary, "kind" | "tokens" | "types">) {
    this.bytes = vocabulary.tokens.map((token, id) => bytesOf(vocabulary.kind, token, vocabulary.types[id]));
    for (const [id, bytes] of this.bytes.entries()) {
      if (bytes.length === 0) continue;
      const lacking = missingBytes(bytes, 0);
      if (bytes.every(isContinuation) && bytes.length <= 3) (this.#closing[bytes.length] as number[]).push(id);
      else if (lacking === 0 && isWhole(bytes) && bytes.length > 1) this.#fresh.push(id);
      else if (lacking > 0 && bytes.length > 1 && !isContinuation(bytes[0] as number))
        this.#fresh.push(...new Array<number>(splitShare).fill(id));
    }
    if (this.#fresh.length === 0) for (const [id, bytes] of this.bytes.entries()) if (bytes.length > 0) this.#fresh.push(id);
  }

  /** @param hash of all tokens before. @param lacking how many bytes the code point lacks that they end in. */
  draw(hash: number, lacking: number): number {
    const closing = this.#closing[lacking] as number[];
    const from = lacking > 0 && closing.length > 0 ? closing : this.#fresh;
    return from[scramble(hash) % from.length] as number;
  }

  /** How many bytes the code point lacks after this token, of which `lacking` were missing before. */
  lackingAfter(token: number, lacking: number): number {
    return missingBytes(this.bytes[token] as Uint8Array, lacking);
  }
}

/** FNV-1a over token ids. */
export function fold(hash: number, id: number): number {
  return Math.imul(hash ^ id, 0x01000193) >>> 0;
}
export const emptyHash = 0x811c9dc5;

/** The finalizer of MurmurHash3: every bit of the hash decides on the word. */
function scramble(hash: number): number {
  let mixed = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}

/** A token's bytes, as its kind of vocabulary writes them. */
function bytesOf(kind: string, token: string, type: number | undefined): Uint8Array {
  if (type === TokenType.byte) return Uint8Array.of(Number.parseInt(token.slice(3, 5), 16));
  if (type !== TokenType.normal) return new Uint8Array();
  if (kind === "gpt2") return Uint8Array.from([...token].map((character) => byteOf.get(character) ?? 0x20));
  return new TextEncoder().encode(token.replaceAll("\u2581", " "));
}

const isContinuation = (byte: number): boolean => (byte & 0xc0) === 0x80;

function isWhole(bytes: Uint8Array): boolean {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}

function missingBytes(bytes: Uint8Array, lacking: number): number {
  let missing = lacking;
  for (const byte of bytes) {
    if (isContinuation(byte)) missing = Math.max(0, missing - 1);
    else missing = byte < 0x80 ? 0 : byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : 1;
  }
  return missing;
}
