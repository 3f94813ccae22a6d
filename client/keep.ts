/**
 * Keeps JSON in the tab's sessionStorage, which a reload and a duplicate of the tab find again: written once a display frame at most, and
 * whenever the page may be about to go. What cannot be kept (storage is forbidden or full) is not: the page works on without.
 */
import { clientLimits } from "./limits.js";
import type { Kept } from "./response.js";

export class Keep {
  #make: (() => unknown) | undefined;
  #frame: number | undefined;

  /** @param name in sessionStorage. @param storage default: this page's own. */
  constructor(
    private readonly name: string,
    private readonly storage: Pick<Storage, "getItem" | "setItem" | "removeItem"> | undefined = ownStorage(),
  ) {
    if (typeof document === "undefined") return;
    // A page that is hidden may be discarded without another word.
    document.addEventListener("visibilitychange", () => document.hidden && this.#write());
    addEventListener("pagehide", () => this.#write());
  }

  /** What was kept last, as it was parsed; undefined where there is nothing that can be read. */
  read(): unknown {
    try {
      const text = this.storage?.getItem(this.name) ?? undefined;
      return text === undefined ? undefined : JSON.parse(text);
    } catch {
      return undefined;
    }
  }

  /** From now on `make` says what is to be kept: in the next frame, and once more when the page goes. */
  keep(make: () => unknown): void {
    this.#make = make;
    this.#frame ??= requestAnimationFrame(() => this.#write());
  }

  /** Nothing is to be kept any more. */
  forget(): void {
    this.#make = undefined;
    try {
      this.storage?.removeItem(this.name);
    } catch {
      // What cannot be written was never there.
    }
  }

  #write(): void {
    if (this.#frame !== undefined) cancelAnimationFrame(this.#frame);
    this.#frame = undefined;
    if (!this.#make) return;
    const text = JSON.stringify(this.#make());
    try {
      if (text.length > clientLimits.keptCharsMax) this.storage?.removeItem(this.name);
      else this.storage?.setItem(this.name, text);
    } catch {
      // A full storage keeps what it had: a beginning, of which the origin sends the rest.
    }
  }
}

/** Whether this is what `Response.kept` gave, and not of another version of the page. */
export function isKept(value: unknown): value is Kept {
  const { version, asked, reading, attempt, home, id, text, seq, ids, promptTokens, droppedTurns, truncatedAt } = fieldsOf(value);
  const { messages, options } = fieldsOf(asked);
  const { key, seed } = fieldsOf(options);
  return (
    version === 1 &&
    Array.isArray(messages) &&
    messages.every((message) => Array.isArray(message) && message.length === 2 && message.every((part) => typeof part === "string")) &&
    typeof key === "string" &&
    isCount(seed) &&
    typeof reading === "object" &&
    reading !== null &&
    isCount(attempt) &&
    (home === undefined || isHome(home)) &&
    (id === undefined || typeof id === "string") &&
    typeof text === "string" &&
    Array.isArray(ids) &&
    ids.every(isCount) &&
    [seq, promptTokens, droppedTurns].every(isCount) &&
    (truncatedAt === undefined || isCount(truncatedAt))
  );
}

function isHome(value: unknown): boolean {
  const { url, epoch, token } = fieldsOf(value);
  return typeof url === "string" && /^wss?:/.test(url) && typeof epoch === "string" && typeof token === "string";
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function fieldsOf(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
}

function ownStorage(): Storage | undefined {
  try {
    return globalThis.sessionStorage;
  } catch {
    return undefined;
  }
}
