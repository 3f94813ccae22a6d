/** How answers ended whose text is gone. Bounded in number and time, the oldest go first. */
import { bounds } from "./bounds.js";
import type { Owner } from "./prepare.js";

export interface Tombstone {
  id: string;
  owner: Owner;
  /** The last token. */
  seq: number;
  /** DONE's reason, an error's code, or "handed_off". */
  reason: string;
  /** Of its START, where that had one and no later answer has it now. */
  key: string | undefined;
  body: string;
  attempt: number;
}

export class Tombstones {
  readonly #byId = new Map<string, Tombstone & { setMs: number }>();
  readonly #byKey = new Map<string, Tombstone>();

  /** @param now milliseconds of a monotonic clock. */
  constructor(private readonly now: () => number) {}

  add(tombstone: Tombstone): void {
    this.#byId.set(tombstone.id, { ...tombstone, setMs: this.now() });
    if (tombstone.key !== undefined) this.#byKey.set(tombstone.key, tombstone);
    while (this.#byId.size > bounds.tombstonesMax) this.#dropOldest();
  }

  byId(id: string): Tombstone | undefined {
    return this.#byId.get(id);
  }

  byKey(key: string): Tombstone | undefined {
    return this.#byKey.get(key);
  }

  tick(): void {
    for (const { setMs } of this.#byId.values()) {
      if (this.now() - setMs <= bounds.tombstonesKeptMs) return;
      this.#dropOldest();
    }
  }

  #dropOldest(): void {
    for (const [id, { key }] of this.#byId) {
      this.#byId.delete(id);
      if (key !== undefined && this.#byKey.get(key)?.id === id) this.#byKey.delete(key);
      return;
    }
  }
}
