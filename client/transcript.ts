/**
 * What of an answer has come: text, token ids, log-probabilities, and the digest that DONE is held against. Applying a frame twice is
 * harmless.
 */
import { Digest } from "../shared/digest.js";
import { type Done, type Logprobs, Op, type Tokens } from "../shared/protocol.js";

/** A token's log-probability in the model's own distribution, and the likeliest tokens' in falling order. */
export interface TokenLogprobs {
  id: number;
  logprob: number;
  top: { id: number; logprob: number }[];
}

/** What is kept of it beyond the page. */
export interface KeptText {
  text: string;
  seq: number;
  ids: number[];
}

export class Transcript {
  readonly logprobs: TokenLogprobs[] = [];
  #text = "";
  #seq = 0;
  readonly #ids: number[] = [];
  readonly #digest = new Digest();
  #logprobsSeq: number;
  /** Came, and counts once its log-probabilities have come too: what is resumed behind it would lack them. */
  #held: Tokens | undefined;

  /** @param hasLogprobs whether LOGPROBS follow each TOKENS. */
  constructor(
    private readonly hasLogprobs: boolean,
    before: KeptText = { text: "", seq: 0, ids: [] },
  ) {
    this.#logprobsSeq = before.seq;
    this.#append(before.seq, before.text, before.ids);
  }

  get text(): string {
    return this.#text;
  }

  /** The last token that has come. */
  get seq(): number {
    return this.#seq;
  }

  /** Of all tokens from the first; undefined where a TOKENS came without its ids. */
  get ids(): number[] | undefined {
    return this.#ids.length === this.#seq ? this.#ids : undefined;
  }

  get kept(): KeptText {
    return { text: this.#text, seq: this.#seq, ids: [...this.#ids] };
  }

  /** @returns whether there are more tokens than before. */
  take(message: Tokens | Logprobs): boolean {
    const before = this.#seq;
    if (message[0] === Op.TOKENS) this.#takeTokens(message);
    else this.#takeLogprobs(message);
    return this.#seq > before;
  }

  /** No LOGPROBS will follow what is held: the stream went on without. @returns as `take`. */
  settle(): boolean {
    if (!this.#held) return false;
    const [, , seq, text, , ids] = this.#held;
    this.#held = undefined;
    this.#append(seq, text, ids);
    return true;
  }

  /** The stream broke off: what is held comes again. */
  drop(): void {
    this.#held = undefined;
  }

  /** Why this is not what the origin sent; undefined where it is. */
  damage([, , seq, reason, textBytes, digest]: Done): string | undefined {
    // A restart that was cancelled at once: the origin never saw what was brought to it.
    if (reason === "cancelled" && seq < this.#seq) return undefined;
    if (textBytes === this.#digest.bytes && digest === this.#digest.value) return undefined;
    const [sent, came] = [`${textBytes} bytes (${hex(digest)})`, `${this.#digest.bytes} bytes (${hex(this.#digest.value)})`];
    return `the origin sent ${sent}, but ${came} came`;
  }

  #takeTokens(message: Tokens): void {
    this.settle();
    const [, , seq, text, , ids] = message;
    if (seq <= this.#seq) return;
    if (this.hasLogprobs) this.#held = message;
    else this.#append(seq, text, ids);
  }

  #takeLogprobs([, , seq, tokens]: Logprobs): void {
    const fresh = Math.min(tokens.length, seq - this.#logprobsSeq);
    if (fresh > 0) {
      this.#logprobsSeq = seq;
      for (const row of tokens.slice(-fresh)) this.logprobs.push(readRow(row));
    }
    if (this.#held && seq >= this.#held[2]) this.settle();
  }

  #append(seq: number, text: string, ids: readonly number[] = []): void {
    this.#seq = seq;
    for (const id of ids) this.#ids.push(id);
    if (text === "") return;
    this.#digest.update(utf8.encode(text));
    this.#text += text;
  }
}

/** The text's beginning, of at most so many bytes of UTF-8 and whole code points. */
export function beginning(text: string, bytesMax: number): string {
  let bytes = 0;
  let end = 0;
  for (const point of text) {
    bytes += utf8Length(point.codePointAt(0) as number);
    if (bytes > bytesMax) break;
    end += point.length;
  }
  return text.slice(0, end);
}

function utf8Length(codePoint: number): number {
  if (codePoint < 0x80) return 1;
  if (codePoint < 0x800) return 2;
  return codePoint < 0x1_0000 ? 3 : 4;
}

function readRow(row: readonly number[]): TokenLogprobs {
  const pairs = Array.from({ length: row.length / 2 }, (_, index) => ({ id: row[2 * index] ?? 0, logprob: row[2 * index + 1] ?? 0 }));
  const [own = { id: 0, logprob: 0 }, ...top] = pairs;
  return { ...own, top };
}

function hex(digest: number): string {
  return digest.toString(16).padStart(8, "0");
}

const utf8 = new TextEncoder();
