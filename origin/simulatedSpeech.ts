/** What the simulated inference says: which token comes after which, in any vocabulary. */
import { TokenType, type Vocabulary, VocabularyError } from "./chat/vocabulary.js";
import { type Release, TextReleaser } from "./simulatedText.js";
import { tokenBytes } from "./simulatedVocabulary.js";

/** Of tokens that begin a code point without ending it, each is drawn so much more often than others: rare in text, common in tests. */
const splitShare = 5;

/** All that can be said in one vocabulary: normal tokens and bytes. */
export class Speech {
  /** [token], empty where it stands for no text. */
  readonly bytes: readonly Uint8Array[];
  /** [token], what is released with one that nothing waits beside and that waits for nothing itself. */
  readonly alone: readonly (Release | undefined)[];
  /** What is drawn from where a code point has ended. */
  readonly #fresh: number[] = [];
  /** [length], tokens that end a code point which lacks so many bytes, and nothing else. */
  readonly #closing: number[][] = [[], [], [], []];
  /** [token][bytes that the code point lacks before it], those that it lacks after it. */
  readonly #lacking: Uint8Array;

  /** One for each vocabulary. @throws VocabularyError where no token of it stands for text. */
  static of(vocabulary: Vocabulary): Speech {
    const speech = known.get(vocabulary) ?? new Speech(vocabulary);
    known.set(vocabulary, speech);
    return speech;
  }

  private constructor(vocabulary: Vocabulary) {
    this.bytes = tokenBytes(vocabulary);
    this.alone = this.bytes.map(releasedAlone);
    this.#lacking = new Uint8Array(4 * this.bytes.length);
    const spoken: number[] = [];
    for (const [id, bytes] of this.bytes.entries()) {
      for (let before = 0; before < 4; before++) this.#lacking[4 * id + before] = lackingAfter(bytes, before);
      const type = vocabulary.types[id];
      if (bytes.length === 0 || (type !== TokenType.normal && type !== TokenType.byte)) continue;
      spoken.push(id);
      const [lead] = bytes as unknown as [number];
      if (bytes.length <= 3 && bytes.every(isContinuation)) (this.#closing[bytes.length] as number[]).push(id);
      // Byte-level vocabularies have longer tokens that begin a code point; one of pieces has nothing but bytes for it.
      else if ((this.#lacking[4 * id] as number) > 0 && !isContinuation(lead) && (bytes.length > 1 || type === TokenType.byte))
        this.#fresh.push(...new Array<number>(splitShare).fill(id));
      else if (bytes.length > 1 && isWhole(bytes)) this.#fresh.push(id);
    }
    if (this.#fresh.length === 0) this.#fresh = spoken;
    if (spoken.length === 0)
      throw new VocabularyError(`a vocabulary of ${this.bytes.length} tokens has none that stands for text: nothing can be said in it`);
  }

  /** @param hash of all tokens before. @param lacking how many bytes the code point lacks that they end in. */
  draw(hash: number, lacking: number): number {
    const from = lacking > 0 ? this.#closers(lacking) : this.#fresh;
    return from[scramble(hash) % from.length] as number;
  }

  /** How many bytes the code point lacks after this token, of which `lacking` were missing before. */
  lackingAfter(token: number, lacking: number): number {
    return this.#lacking[4 * token + lacking] as number;
  }

  /** Those that end the code point, or, where there are none, at least go on with it, if any do. */
  #closers(lacking: number): readonly number[] {
    for (let length = lacking; length > 0; length--) {
      const closing = this.#closing[length] as number[];
      if (closing.length > 0) return closing;
    }
    return this.#fresh;
  }
}

const known = new WeakMap<Vocabulary, Speech>();

/** One answer, token by token. Each is a function of all before it, the prompt's included. */
export class Speaker {
  #hash = emptyHash;
  #lacking = 0;
  /** Made when it is needed: there are thousands of speakers, most of whose tokens stand alone. */
  #releaser: TextReleaser | undefined;
  #isHeld = false;

  constructor(
    private readonly speech: Speech,
    prompt: ArrayLike<number>,
    private readonly stops: readonly string[] = [],
  ) {
    for (let index = 0; index < prompt.length; index++) this.#hash = fold(this.#hash, prompt[index] as number);
  }

  /** The token that comes next; it is `take` that goes on. */
  next(): number {
    return this.speech.draw(this.#hash, this.#lacking);
  }

  /** One more token, said here or elsewhere. @returns what may be told now. */
  take(id: number, mayStop = true): Release {
    this.#hash = fold(this.#hash, id);
    this.#lacking = this.speech.lackingAfter(id, this.#lacking);
    const alone = this.speech.alone[id];
    if (alone && !this.#isHeld && (!mayStop || this.stops.length === 0)) return alone;
    this.#releaser ??= new TextReleaser(this.stops);
    const release = this.#releaser.push(id, this.speech.bytes[id] as Uint8Array, mayStop);
    this.#isHeld = !this.#releaser.isEmpty;
    return release;
  }

  /** The answer is over. @returns what was held. */
  end(): Release | undefined {
    return this.#releaser?.flush();
  }
}

/** What the simulated inference answers to these prompt ids with so many tokens and no stop strings: what tests expect. */
export function simulatedAnswer(vocabulary: Vocabulary, prompt: ArrayLike<number>, tokens: number): { ids: number[]; text: string } {
  const speaker = new Speaker(Speech.of(vocabulary), prompt);
  const ids: number[] = [];
  let text = "";
  for (let count = 0; count < tokens; count++) {
    const id = speaker.next();
    ids.push(id);
    text += speaker.take(id).text;
  }
  return { ids, text: text + (speaker.end()?.text ?? "") };
}

/** FNV-1a over token ids instead of bytes, as a signed number: such are the ones that are cheap to keep. */
export function fold(hash: number, id: number): number {
  return Math.imul(hash ^ id, 0x01000193);
}
export const emptyHash = 0x811c9dc5 | 0;

/** The finalizer of MurmurHash3: every bit of the hash decides on the token. */
export function scramble(hash: number): number {
  let mixed = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}

function releasedAlone(bytes: Uint8Array, id: number): Release | undefined {
  const releaser = new TextReleaser();
  const release = releaser.push(id, bytes);
  return releaser.isEmpty ? release : undefined;
}

const isContinuation = (byte: number): boolean => (byte & 0xc0) === 0x80;

const strict = new TextDecoder("utf-8", { fatal: true });
function isWhole(bytes: Uint8Array): boolean {
  try {
    strict.decode(bytes);
    return true;
  } catch {
    return false;
  }
}

function lackingAfter(bytes: Uint8Array, before: number): number {
  let lacking = before;
  for (const byte of bytes) {
    if (isContinuation(byte)) lacking = Math.max(0, lacking - 1);
    else lacking = byte < 0x80 ? 0 : byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : 1;
  }
  return lacking;
}
