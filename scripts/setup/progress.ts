/**
 * Says how set-up goes, on stderr, so that what a command prints to stdout stays its own: on a terminal one line that rewrites
 * itself with a bar for each part under way, elsewhere plain lines, one per part and quarter.
 */
export interface ProgressOutput {
  write(text: string): unknown;
  isTTY?: boolean;
  columns?: number;
}

const barCells = 20;
/** A plain log gets a line each time this much more is done. */
const plainStep = 0.25;

export class Progress {
  readonly #parts = new Map<string, Part>();
  #drawn = 0;

  constructor(private readonly out: ProgressOutput = process.stderr) {}

  /** Starts a part; its name is the line's first word. */
  begin(name: string, note: string): Part {
    const part = new Part(name, note, this);
    this.#parts.set(name, part);
    if (this.out.isTTY) this.draw();
    return part;
  }

  /** @internal A part calls this when it moved. */
  moved(part: Part): void {
    if (this.out.isTTY) return void this.draw();
    const step = Math.floor(part.fraction / plainStep);
    if (step <= part.stepShown || part.fraction >= 1) return;
    part.stepShown = step;
    this.out.write(`${part.name}: ${Math.floor(part.fraction * 100)}% ${part.note}\n`);
  }

  /** @internal A part calls this when it is over; its last words stay on the screen. */
  ended(part: Part, words: string | undefined): void {
    this.#parts.delete(part.name);
    this.#erase();
    if (words !== undefined) this.out.write(`${part.name}: ${words}\n`);
    if (this.out.isTTY) this.draw();
  }

  draw(): void {
    const line = [...this.#parts.values()].map((part) => part.line()).join("   ");
    const shown = line.slice(0, Math.max(20, (this.out.columns || 80) - 1));
    this.#erase();
    this.out.write(shown);
    this.#drawn = shown.length;
  }

  #erase(): void {
    if (this.#drawn > 0) this.out.write(`\r${" ".repeat(this.#drawn)}\r`);
    this.#drawn = 0;
  }
}

export class Part {
  fraction = 0;
  /** @internal The last step that a plain log has a line for; a part that ends at once gets none but its last. */
  stepShown = -1;

  constructor(
    readonly name: string,
    public note: string,
    private readonly progress: Progress,
  ) {}

  /** @param fraction done, 0 to 1. */
  at(fraction: number, note: string): void {
    this.fraction = Math.min(1, Math.max(this.fraction, fraction));
    this.note = note;
    this.progress.moved(this);
  }

  /** `words` say what came of it; a part that had nothing to do leaves without a word. */
  end(words?: string): void {
    this.progress.ended(this, words);
  }

  line(): string {
    const full = Math.round(this.fraction * barCells);
    return `${this.name} [${"#".repeat(full)}${"-".repeat(barCells - full)}] ${this.note}`;
  }
}

/** A part that says nothing. */
export function silent(): Part {
  return new Progress({ write: () => {} }).begin("", "");
}

/** `12.3 s`. */
export function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}

/** `28 MiB`. */
export function mebibytes(bytes: number): string {
  return `${Math.round(bytes / 1_048_576)} MiB`;
}
