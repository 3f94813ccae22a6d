/**
 * Where sentences end, as text comes in: a voice agent speaks a sentence as soon as it has one. A point may turn out to be a decimal's, an
 * abbreviation's or an ellipsis', so an end is told with the piece that makes it certain, the first with something to see in it.
 */

/** Words after which a point ends no sentence, in lower case and without it. */
const abbreviations = new Set(
  (
    "mr mrs ms mx dr prof sr jr st rev hon gen col sgt capt lt gov sen rep vs no nos vol p pp fig figs eq ch sec art ed eds est dept univ inc ltd co corp " +
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun approx cf al ca min max tel ext e.g i.e a.m p.m u.s u.k u.n ph.d b.a m.a d.c " +
    "bzw ca z.b d.h u.a usw vgl nr str evtl ggf inkl zzgl mme mlle env p.ex"
  ).split(" "),
);
/** Some of these end a sentence as often as not: what follows decides. */
const openAbbreviations = new Set([
  "a.m",
  "p.m",
  "u.s",
  "u.k",
  "u.n",
  "ph.d",
  "d.c",
  "inc",
  "ltd",
  "co",
  "corp",
  "jr",
  "sr",
  "etc",
  "usw",
  "al",
]);

const closers = /["'”’»)\]}*_`」』）】〉》]+$/u;
const cjkStops = /[。！？｡]$/u;
/** What is kept of the sentence that has begun: enough for any word and its stop. */
const tailLengthMax = 160;

export class Sentences {
  /** The end of what belongs to the sentence that runs. */
  #tail = "";
  #hasWord = false;
  /** Whether what came last, white space aside, may be what a sentence ends with: only then is it looked at closely. */
  #mayEnd = false;
  /** Line ends since there was something to see. */
  #newlines = 0;
  /** Backquotes at the end of what came, which may become more. */
  #ticks = 0;
  /** The run of backquotes that opened code; 0 outside. */
  #code = 0;

  /** Takes the next piece of text. @returns whether the text before it ends a sentence. */
  endsBefore(piece: string): boolean {
    if (!this.#mayEnd && this.#newlines === 0 && this.#ticks === 0 && isPlainWord(piece)) {
      this.#appendWord(piece);
      return false;
    }
    const first = piece.search(/\S/u);
    const isCandidate =
      first >= 0 && this.#hasWord && this.#code === 0 && (this.#mayEnd || this.#newlines + newlinesIn(piece, 0, first) > 1);
    const isOver = isCandidate && isEnd(this.#tail + piece.slice(0, first), piece.slice(first));
    if (isOver) {
      this.#tail = "";
      this.#hasWord = false;
    }
    this.#keep(this.#tail + piece);
    this.#lookBack(piece, first);
    this.#hasWord ||= /[\p{L}\p{N}]/u.test(piece);
    this.#follow(piece);
    return isOver;
  }

  /** Within a line of words no more is kept than that something stands before the last. */
  #appendWord(piece: string): void {
    const last = this.#tail.charCodeAt(this.#tail.length - 1);
    const isWithinLine = piece.charCodeAt(0) === space && last > space && last < 0x7f;
    this.#keep((isWithinLine ? String.fromCharCode(last) : this.#tail) + piece);
    this.#hasWord = true;
  }

  #keep(tail: string): void {
    this.#tail = tail.length > 2 * tailLengthMax ? tail.slice(-tailLengthMax) : tail;
  }

  /** @param first where in the piece there is something to see; -1 for nowhere. */
  #lookBack(piece: string, first: number): void {
    if (first < 0) {
      this.#newlines += newlinesIn(piece, 0, piece.length);
      return;
    }
    let last = piece.length - 1;
    while (isSpace.test(piece[last] as string)) last--;
    this.#newlines = newlinesIn(piece, last + 1, piece.length);
    // Letters and digits of ASCII end no sentence; of all else the tail is asked.
    this.#mayEnd = !isAsciiWord(piece.charCodeAt(last));
  }

  /** Keeps account of code: between runs of as many backquotes. */
  #follow(piece: string): void {
    if (this.#ticks === 0 && !piece.includes("`")) return;
    for (const character of piece) {
      if (character === "`") {
        this.#ticks++;
        continue;
      }
      this.#closeRun();
    }
  }

  #closeRun(): void {
    if (this.#ticks === 0) return;
    if (this.#code === 0) this.#code = this.#ticks;
    else if (this.#ticks >= this.#code) this.#code = 0;
    this.#ticks = 0;
  }
}

const isSpace = /\s/u;
const space = 0x20;

function isAsciiWord(code: number): boolean {
  return (code >= 0x30 && code <= 0x39) || (code >= 0x41 && code <= 0x5a) || (code >= 0x61 && code <= 0x7a);
}

/** Letters and digits of ASCII, perhaps after a space: what most tokens are. */
function isPlainWord(piece: string): boolean {
  const begin = piece.charCodeAt(0) === space ? 1 : 0;
  for (let at = begin; at < piece.length; at++) if (!isAsciiWord(piece.charCodeAt(at))) return false;
  return piece.length > begin;
}

function newlinesIn(text: string, from: number, to: number): number {
  let count = 0;
  for (let at = from; at < to; at++) if (text.charCodeAt(at) === 0x0a) count++;
  return count;
}

/** @param before up to the first thing to see after it, white space included. @param after what is seen then. */
function isEnd(before: string, after: string): boolean {
  const said = before.trimEnd();
  const gap = before.slice(said.length);
  // A blank line ends a heading and an item of a list too, whatever they end with.
  if (/\n[^\S\n]*\n/u.test(gap)) return true;
  if (/^[)\]}"'”’»」』）】〉》。！？｡.!?…]/u.test(after) && gap === "") return false;
  const core = said.replace(closers, "");
  if (cjkStops.test(core)) return true;
  if (gap === "") return false;
  if (/[!?]$/u.test(core)) return true;
  const beginsAnew = /^["'“‘«([*_]*[\p{Lu}\p{Lo}\p{N}]/u.test(after);
  if (/(\.{2,}|…)$/u.test(core)) return beginsAnew;
  if (!core.endsWith(".")) return false;
  return isFullStop(core.slice(0, -1), beginsAnew);
}

/** Whether the point after `said` ends a sentence. */
function isFullStop(said: string, beginsAnew: boolean): boolean {
  const word = /[\p{L}\p{N}.]+$/u.exec(said)?.[0] ?? "";
  // "3." at a line's beginning counts a list; so do "a." and "IV.".
  if (/(^|\n)\s*(\p{N}+|\p{L}|[IVX]+)$/u.test(said)) return false;
  const known = word.toLowerCase();
  if (openAbbreviations.has(known)) return beginsAnew;
  if (abbreviations.has(known)) return false;
  // An initial: "J. S. Bach". After a whole word, a single letter is one too: "plan B." is rarer than "Harry S. Truman".
  if (/^\p{Lu}$/u.test(word)) return false;
  return true;
}
