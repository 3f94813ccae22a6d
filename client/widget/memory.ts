import { type ErrorCode, type FinishReason, isErrorCode, isKept, Keep, type Kept, type Response } from "../index.js";
import { clientLimits } from "../limits.js";

/** A turn as it is remembered: what was asked, and what has become of it. */
export interface Said {
  question: string;
  text: string;
  reason?: FinishReason;
  error?: { code: ErrorCode; message: string };
}

/** What this tab remembers of its conversation beyond a reload: the turns, and the answer that runs. */
export class Memory {
  readonly #turns = new Keep("millrace.turns");
  readonly #answer = new Keep("millrace.answer");

  turns(): Said[] {
    const kept = this.#turns.read();
    return Array.isArray(kept) && kept.every(isSaid) ? kept : [];
  }

  /** Of the last turn, where it was not over. */
  answer(): Kept | undefined {
    const kept = this.#answer.read();
    return isKept(kept) ? kept : undefined;
  }

  keepTurns(turns: readonly Said[]): void {
    this.#turns.keep(() => newest(turns));
  }

  /** To be called whenever there is more of it. */
  keepAnswer(response: Response): void {
    this.#answer.keep(() => response.kept());
  }

  forgetAnswer(): void {
    this.#answer.forget();
  }

  forget(): void {
    this.#turns.forget();
    this.#answer.forget();
  }
}

/** As many of the last turns as may be kept. */
function newest(turns: readonly Said[]): Said[] {
  let chars = 0;
  const first = turns.findLastIndex((turn) => {
    chars += JSON.stringify(turn).length + 1;
    return chars >= clientLimits.keptCharsMax;
  });
  return turns.slice(first + 1);
}

function isSaid(value: unknown): value is Said {
  const { question, text, error } = (value ?? {}) as Partial<Record<keyof Said, unknown>>;
  const { code, message } = (error ?? {}) as { code?: unknown; message?: unknown };
  const isError = error === undefined || (isErrorCode(code) && typeof message === "string");
  return typeof question === "string" && typeof text === "string" && isError;
}
