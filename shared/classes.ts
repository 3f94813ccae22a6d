/**
 * A class is a promise on latency: the first token within `ttftMs`, each later one within `itlMs` of its due time. Where it cannot be
 * promised, a request waits if that is expected to take no longer than `waitMs`; otherwise it is refused with `overloaded`.
 * An origin may be given others (origin/terms.ts), in the same order of tightness.
 */
export interface ServiceClass {
  readonly ttftMs: number;
  readonly itlMs: number;
  readonly waitMs: number;
}

/** How a class's tokens are sent, and how long an answer goes on that nobody follows. */
export interface ClassDelivery {
  /** Tokens are gathered for so long at most; 0: each goes out at once. */
  readonly flushEveryMs: number;
  readonly graceMs: number;
}

export const serviceClasses = {
  voice: { ttftMs: 500, itlMs: 60, waitMs: 0 },
  chat: { ttftMs: 2_000, itlMs: 150, waitMs: 60_000 },
  batch: { ttftMs: 60_000, itlMs: 2_000, waitMs: 600_000 },
} as const satisfies Record<string, ServiceClass>;

/** A display shows a frame every 16 ms: what comes within one is one message. */
export const classDelivery: Readonly<Record<keyof typeof serviceClasses, ClassDelivery>> = {
  voice: { flushEveryMs: 0, graceMs: 10_000 },
  chat: { flushEveryMs: 16, graceMs: 120_000 },
  batch: { flushEveryMs: 100, graceMs: 600_000 },
};

/** Tightest first. */
export type ClassName = keyof typeof serviceClasses;

export const classNames = Object.keys(serviceClasses) as ClassName[];

export function isClassName(value: unknown): value is ClassName {
  return typeof value === "string" && Object.hasOwn(serviceClasses, value);
}

/** Whether a session of class `own` may ask for `asked`: its own, or one with looser promises. */
export function mayAsk(own: ClassName, asked: ClassName): boolean {
  return classNames.indexOf(asked) >= classNames.indexOf(own);
}
