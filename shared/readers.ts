/** Readers of single values that came over the wire. Each throws `field_invalid` with the field's name and what stood there. */
import { MillraceError } from "./errors.js";
import { limits } from "./limits.js";

export function map(value: unknown, name: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value) || value instanceof Uint8Array)
    throw invalid(`${name} is ${shown(value)}, not a map`);
  return value as Record<string, unknown>;
}

export function text(value: unknown, name: string): string {
  if (typeof value !== "string") throw invalid(`${name} is ${shown(value)}, not a text`);
  return value;
}

export function nonNegative(value: unknown, name: string): number {
  return within(value, name, 0, Number.MAX_SAFE_INTEGER);
}

export function within(value: unknown, name: string, min: number, max: number, integer = false): number {
  if (typeof value !== "number" || !(value >= min && value <= max) || (integer && !Number.isSafeInteger(value)))
    throw invalid(`${name} is ${shown(value)}, not ${integer ? "an integer" : "a number"} from ${min} to ${max}`);
  return value;
}

export function oneOf<Value extends string>(value: unknown, allowed: readonly Value[], name: string): Value {
  if (!allowed.includes(value as Value)) throw invalid(`${name} is ${shown(value)}, not one of ${allowed.join(", ")}`);
  return value as Value;
}

export function isIntegerWithin(value: unknown, min: number, max: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max;
}

export function invalid(why: string): MillraceError {
  return new MillraceError("field_invalid", why);
}

export function shown(value: unknown): string {
  if (value === undefined) return "missing";
  if (typeof value === "bigint") return `${value}`;
  if (value instanceof Uint8Array) return `${value.length} bytes`;
  return JSON.stringify(value).slice(0, 80);
}

export function boolean(value: unknown, name: string): boolean {
  if (typeof value !== "boolean") throw invalid(`${name} is ${shown(value)}, not true or false`);
  return value;
}

export function tokenIds(value: unknown, name: string): number[] {
  if (!Array.isArray(value) || value.length > limits.continueIdsMax || !value.every((id) => isIntegerWithin(id, 0, 0x7fff_ffff)))
    throw invalid(`${name} is not an array of at most ${limits.continueIdsMax} token ids`);
  return value;
}

export function nameText(value: unknown, name: string): string {
  const bytes = typeof value === "string" ? new TextEncoder().encode(value).length : 0;
  if (bytes < 1 || bytes > limits.nameBytesMax)
    throw invalid(`${name} is ${shown(value)}, not a text of 1 to ${limits.nameBytesMax} bytes`);
  return value as string;
}
