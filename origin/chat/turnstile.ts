/**
 * Who may tokenize now: a conversation of a megabyte takes one of libuv's four threads for over a second. Each user has one conversation
 * in work, users take turns, and the long ones leave a thread to the short. Knows no tokenizer.
 */
import { MillraceError } from "../../shared/errors.js";
import { bounds } from "../bounds.js";

interface Waiting {
  isLong: boolean;
  begin: () => void;
}

export class Turnstile {
  /** Users with something waiting or in work, whoever was served longest ago first. */
  readonly #users = new Map<string, { waiting: Waiting[]; isBusy: boolean }>();
  #waiting = 0;
  #running = 0;
  #longRunning = 0;

  /**
   * Runs the task in its turn.
   * @param chars how long the conversation is.
   * @throws MillraceError `overloaded` at once, where too many wait already.
   */
  async run<Value>(user: string, chars: number, task: () => Promise<Value>): Promise<Value> {
    const isLong = chars > bounds.tokenizeLongChars;
    await this.#turn(user, isLong);
    try {
      return await task();
    } finally {
      this.#leave(user, isLong);
    }
  }

  #turn(user: string, isLong: boolean): Promise<void> {
    const line = this.#users.get(user) ?? { waiting: [], isBusy: false };
    const full = [
      { count: line.waiting.length, max: bounds.tokenizeWaitingOfUserMax, whose: "of this user" },
      { count: this.#waiting, max: bounds.tokenizeWaitingMax, whose: "of all users" },
    ].find(({ count, max }) => count >= max);
    if (full)
      throw new MillraceError("overloaded", `${full.count} conversations ${full.whose} wait to be tokenized already`, bounds.retryAfterMs);
    this.#users.set(user, line);
    this.#waiting++;
    return new Promise((begin) => {
      line.waiting.push({ isLong, begin });
      this.#next();
    });
  }

  #leave(user: string, isLong: boolean): void {
    this.#running--;
    if (isLong) this.#longRunning--;
    const line = this.#users.get(user);
    this.#users.delete(user);
    if (line && line.waiting.length > 0) this.#users.set(user, { ...line, isBusy: false });
    this.#next();
  }

  #next(): void {
    for (const line of this.#users.values()) {
      if (this.#running >= bounds.tokenizeAtOnceMax) return;
      const [first] = line.waiting;
      if (line.isBusy || !first || (first.isLong && this.#longRunning >= bounds.tokenizeLongAtOnceMax)) continue;
      line.waiting.shift();
      line.isBusy = true;
      this.#waiting--;
      this.#running++;
      if (first.isLong) this.#longRunning++;
      first.begin();
    }
  }
}
