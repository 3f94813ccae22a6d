/**
 * What is promised to whom: each class's deadlines, each tenant's share of its class, and what a START may wish instead. By default that of
 * shared/classes.ts; a file of JSON changes any of it:
 *
 *     { "classes": { "voice": { "ttftMs": 400 } }, "tenants": { "acme": { "weight": 4 } } }
 */
import { type ClassName, classNames, type ServiceClass, serviceClasses } from "../shared/classes.js";
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import type { StartOptions } from "../shared/protocol.js";
import { bounds } from "./bounds.js";

/** One answer's. */
export interface Terms extends ServiceClass {
  /** Tenants of one class share it by weight. */
  tenantWeight: number;
}

const fieldNames = ["ttftMs", "itlMs", "waitMs"] as const satisfies readonly (keyof ServiceClass)[];
const fieldRanges = {
  ttftMs: [1, limits.ttftMsMax],
  itlMs: [1, limits.itlMsMax],
  waitMs: [0, limits.waitMsMax],
} as const;

export class ServiceTerms {
  constructor(
    readonly classes: Readonly<Record<ClassName, ServiceClass>> = serviceClasses,
    readonly weights: ReadonlyMap<string, number> = new Map(),
  ) {}

  /**
   * A wish takes the place of the class's own, and admission answers it: a tighter one may well be refused where the class's would be kept.
   * It reaches no further than the tightest and the loosest class of all; and who asks for more than his class promises takes as much more
   * of his tenant's share, so that asking always for the tightest gains a tenant nothing over the others of its class.
   * @throws MillraceError `field_invalid` for a wish outside what this origin's classes span.
   */
  of(name: ClassName, tenant: string, wish: Pick<StartOptions, keyof ServiceClass>): Terms {
    const own = this.classes[name];
    const asked = { ...own };
    for (const field of fieldNames) {
      const value = wish[field];
      if (value === undefined) continue;
      const all = classNames.map((each) => this.classes[each][field]);
      const [min, max] = [Math.min(...all), Math.max(...all)];
      if (value < min || value > max)
        throw new MillraceError("field_invalid", `${field} is ${value}, but this origin's classes span ${min} to ${max}`);
      asked[field] = value;
    }
    const tightness = Math.max(1, own.ttftMs / asked.ttftMs, own.itlMs / asked.itlMs);
    const weight = (this.weights.get(tenant) ?? 1) / tightness;
    return { ...asked, tenantWeight: Math.max(weight, bounds.tenantWeightMin) };
  }
}

/** @param text the file's JSON. @throws Error saying which part is wrong and what it may be. */
export function readTerms(text: string): ServiceTerms {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new Error(`it is not JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
  const whole = part(json, "the file", ["classes", "tenants"]);
  const given = part(whole.classes ?? {}, "classes", classNames);
  const classes = Object.fromEntries(classNames.map((name) => [name, readClass(name, given[name] ?? {})])) as Record<
    ClassName,
    ServiceClass
  >;
  for (const [index, looser] of classNames.entries()) {
    const tighter = classNames[index - 1];
    for (const field of ["ttftMs", "itlMs"] as const)
      if (tighter && classes[tighter][field] > classes[looser][field])
        throw new Error(
          `classes.${looser}.${field} is ${classes[looser][field]}, tighter than the ${classes[tighter][field]} of ${tighter}: the order is ${classNames.join(", ")}`,
        );
  }
  return new ServiceTerms(classes, readWeights(whole.tenants ?? {}));
}

function readClass(name: ClassName, json: unknown): ServiceClass {
  const given = part(json, `classes.${name}`, fieldNames);
  const fields = fieldNames.map((field) => {
    const [min, max] = fieldRanges[field];
    return [field, number(given[field] ?? serviceClasses[name][field], `classes.${name}.${field}`, min, max)];
  });
  return Object.fromEntries(fields) as unknown as ServiceClass;
}

function readWeights(json: unknown): Map<string, number> {
  const tenants = Object.entries(part(json, "tenants"));
  if (tenants.length > bounds.tenantsMax) throw new Error(`tenants has ${tenants.length} entries, over ${bounds.tenantsMax}`);
  return new Map(
    tenants.map(([tenant, each]) => {
      const at = `tenants.${tenant}`;
      const { weight = 1 } = part(each, at, ["weight"]);
      return [tenant, number(weight, `${at}.weight`, bounds.tenantWeightMin, bounds.tenantWeightMax)];
    }),
  );
}

/** An object whose keys are among these, if any are named. */
function part(json: unknown, at: string, keys?: readonly string[]): Record<string, unknown> {
  if (typeof json !== "object" || json === null || Array.isArray(json)) throw new Error(`${at} is ${shown(json)}, not an object`);
  const strange = keys && Object.keys(json).find((key) => !keys.includes(key));
  if (strange !== undefined) throw new Error(`${at} has ${JSON.stringify(strange)}; it may have ${keys?.join(", ")}`);
  return json as Record<string, unknown>;
}

function number(value: unknown, at: string, min: number, max: number): number {
  if (typeof value !== "number" || !(value >= min && value <= max))
    throw new Error(`${at} is ${shown(value)}, not a number from ${min} to ${max}`);
  return value;
}

function shown(value: unknown): string {
  return JSON.stringify(value)?.slice(0, 80) ?? "missing";
}
