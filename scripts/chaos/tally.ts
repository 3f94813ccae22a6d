/** What happened in a run, and what was wrong. */
export const paths = ["replay", "resume", "misroute", "gone", "restart", "hand-off", "held back", "park"] as const;
export type Path = (typeof paths)[number];

export class Tally {
  answered = 0;
  readonly #paths = new Map<Path, number>(paths.map((path) => [path, 0]));
  readonly #disturbances = new Map<string, number>();
  readonly #wrong: string[] = [];

  count(path: Path, more = 1): void {
    this.#paths.set(path, this.of(path) + more);
  }

  of(path: Path): number {
    return this.#paths.get(path) ?? 0;
  }

  /** Something was done to an answer between its first token and its last. */
  disturbed(how: string, answers = 1): void {
    if (answers > 0) this.#disturbances.set(how, (this.#disturbances.get(how) ?? 0) + answers);
  }

  get disturbances(): number {
    return [...this.#disturbances.values()].reduce((sum, count) => sum + count, 0);
  }

  wrong(sentence: string): void {
    this.#wrong.push(sentence);
  }

  get wrongs(): readonly string[] {
    return this.#wrong;
  }

  describe(): string {
    const list = (counts: Iterable<[string, number]>): string => [...counts].map(([name, count]) => `${name} ${count}`).join(", ");
    return [
      `${this.answered} answers, each what it should be but for ${this.#wrong.length}`,
      `${this.disturbances} disturbances between first and last token: ${list(this.#disturbances)}`,
      `paths taken: ${list(this.#paths)}`,
    ].join("\n");
  }
}
