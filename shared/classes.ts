/** A class is a promise on latency: the first token within `ttftMs`, each later one within `itlMs` of its due time. */
export interface ServiceClass {
  readonly ttftMs: number;
  readonly itlMs: number;
}

export const serviceClasses = {
  voice: { ttftMs: 500, itlMs: 60 },
  chat: { ttftMs: 2_000, itlMs: 150 },
  batch: { ttftMs: 60_000, itlMs: 2_000 },
} as const satisfies Record<string, ServiceClass>;

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
