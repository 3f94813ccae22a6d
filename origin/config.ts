/** The origin's flags. Each can also be set by an environment variable: `--kv-memory` by MILLRACE_KV_MEMORY; the flag wins. */

import type { KeyObject } from "node:crypto";
import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { limits } from "../shared/limits.js";
import { readEdgeKey } from "./assertion.js";
import { bounds } from "./bounds.js";
import { readTerms, ServiceTerms } from "./terms.js";

export interface Config {
  host: string;
  port: number;
  name: string;
  edgeKey: KeyObject;
  inference: "native" | "simulated";
  /** A GGUF file. */
  model: string;
  /** Undefined: the engine chooses. */
  threads: number | undefined;
  contextTokens: number | undefined;
  kvMemoryBytes: number | undefined;
  slots: number | undefined;
  kvType: "f16" | "q8" | undefined;
  kernels: "auto" | "cpu" | "hopper" | undefined;
  deterministic: boolean;
  precision: "stored" | "fp8" | undefined;
  terms: ServiceTerms;
  drainMs: number;
  simulatedTokensPerSecond: number;
  simulatedAnswerTokens: number;
  /** Whose vocabulary a simulated inference speaks in; undefined: a small one of its own. */
  simulatedModel: string | undefined;
  simulatedStamps: boolean;
}

/** A flag or variable is wrong; the message names it, its value and what it takes. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

const flags = {
  host: "HOST       address to listen on (127.0.0.1)",
  port: "N          port to listen on, 0 for any (9101)",
  name: "NAME       this origin's name, which the edge's assertions carry (origin-1)",
  "edge-key": "PATH       the edge's Ed25519 public key, a JWK (required)",
  inference: "KIND       native, or simulated for load tests (native)",
  model: "PATH       a GGUF file or a Hugging Face folder (the default model in the cache)",
  threads: "N          threads that compute (what affinity and cgroup allow)",
  ctx: "N          most tokens of one conversation (the model's, at most 8192)",
  "kv-memory": "BYTES      ceiling of KV memory, e.g. 2GiB (computed)",
  "kv-type": "TYPE       keys and values in f16, or in 8 bits: q8 (f16)",
  slots: "N          answers decoded at once (32)",
  kernels: "SET        auto, cpu or hopper (a GPU's where there is one: auto)",
  precision: "TYPE       weights as stored, or on a GPU in fp8 (stored)",
  deterministic: "0|1        1: the same bits in any company on a GPU too, more slowly (0)",
  classes: "PATH       JSON with other deadlines of classes, and tenants' weights (none)",
  "drain-ms": `N          how long SIGTERM lets answers finish (${limits.drainMs})`,
  "simulated-rate": "N          simulated tokens per second and answer (50)",
  "simulated-answer": "N          tokens after which a simulated answer ends (256)",
  "simulated-stamps": "0|1        1: each simulated token says when it was due (0)",
} as const;

type Flag = keyof typeof flags;

/** What `--help` prints. */
export const usage = `node --import tsx origin/main.ts [flags]\n${Object.entries(flags)
  .map(([flag, text]) => `  --${flag.padEnd(17)} ${text}`)
  .join("\n")}\n`;

/** @throws ConfigError */
export function readConfig(args: readonly string[], env: Readonly<Record<string, string | undefined>>): Config {
  const given = parseFlags(args);
  const read = (flag: Flag): string | undefined => given[flag] ?? env[`MILLRACE_${flag.toUpperCase().replaceAll("-", "_")}`];
  const integer = (flag: Flag, min: number, max: number): number | undefined => parseInteger(flag, read(flag), min, max);
  const inference = read("inference") ?? "native";
  if (inference !== "native" && inference !== "simulated")
    throw new ConfigError(`--inference is ${JSON.stringify(inference)}, not "native" or "simulated"`);
  const name = read("name") ?? "origin-1";
  if (!/^[\w.-]{1,64}$/.test(name))
    throw new ConfigError(`--name is ${JSON.stringify(name)}, not 1 to 64 letters, digits, dots, dashes or underscores`);
  return {
    host: read("host") ?? "127.0.0.1",
    port: integer("port", 0, 65_535) ?? 9_101,
    name,
    edgeKey: loadEdgeKey(read("edge-key")),
    inference,
    model: read("model") ?? join(env.MILLRACE_CACHE ?? join(homedir(), ".cache", "millrace"), "SmolLM2-135M-Instruct.Q4_1.gguf"),
    threads: integer("threads", 1, 1_024),
    contextTokens: integer("ctx", 16, 1 << 24),
    kvMemoryBytes: parseBytes("kv-memory", read("kv-memory")),
    slots: integer("slots", 1, inference === "simulated" ? bounds.socketsMax : 4_096),
    kvType: parseKvType(read("kv-type")),
    kernels: choice("kernels", read("kernels"), ["auto", "cpu", "hopper"] as const),
    precision: choice("precision", read("precision"), ["stored", "fp8"] as const),
    deterministic: integer("deterministic", 0, 1) === 1,
    terms: loadTerms(read("classes")),
    drainMs: integer("drain-ms", 0, 3_600_000) ?? limits.drainMs,
    simulatedTokensPerSecond: integer("simulated-rate", 1, 100_000) ?? 50,
    simulatedAnswerTokens: integer("simulated-answer", 1, 1 << 24) ?? 256,
    simulatedModel: inference === "simulated" ? read("model") : undefined,
    simulatedStamps: integer("simulated-stamps", 0, 1) === 1,
  };
}

function parseFlags(args: readonly string[]): Partial<Record<Flag, string>> {
  const options = Object.fromEntries(Object.keys(flags).map((flag) => [flag, { type: "string" as const }]));
  try {
    return parseArgs({ args: [...args], options, strict: true, allowPositionals: false }).values as Partial<Record<Flag, string>>;
  } catch (error) {
    throw new ConfigError(`${error instanceof Error ? error.message : String(error)}\n${usage}`);
  }
}

function loadEdgeKey(path: string | undefined): KeyObject {
  if (!path) throw new ConfigError("--edge-key is missing: give the file with the edge's public key, without which nobody can be let in");
  try {
    const text = readFileSync(path, "utf8");
    if (text.length > bounds.keyFileBytesMax) throw new Error(`it has ${text.length} characters`);
    return readEdgeKey(text);
  } catch (error) {
    throw new ConfigError(`--edge-key ${path} cannot be used: ${error instanceof Error ? error.message : String(error)}`);
  }
}

function loadTerms(path: string | undefined): ServiceTerms {
  if (path === undefined) return new ServiceTerms();
  try {
    const text = readFileSync(path, "utf8");
    if (text.length > bounds.classesFileBytesMax) throw new Error(`it has ${text.length} characters, over ${bounds.classesFileBytesMax}`);
    return readTerms(text);
  } catch (error) {
    throw new ConfigError(`--classes ${path} cannot be used: ${error instanceof Error ? error.message : String(error)}`);
  }
}

function parseInteger(flag: Flag, text: string | undefined, min: number, max: number): number | undefined {
  if (text === undefined) return undefined;
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (!(value >= min && value <= max)) throw new ConfigError(`--${flag} is ${JSON.stringify(text)}, not an integer from ${min} to ${max}`);
  return value;
}

function parseKvType(text: string | undefined): "f16" | "q8" | undefined {
  if (text !== undefined && text !== "f16" && text !== "q8")
    throw new ConfigError(`--kv-type is ${JSON.stringify(text)}, not "f16" or "q8"`);
  return text;
}

function choice<const Value extends string>(flag: Flag, text: string | undefined, values: readonly Value[]): Value | undefined {
  const found = values.find((value) => value === text);
  if (text !== undefined && found === undefined)
    throw new ConfigError(`--${flag} is ${JSON.stringify(text)}, not one of ${values.join(", ")}`);
  return found;
}

const byteUnits: Record<string, number> = { "": 1, kib: 2 ** 10, mib: 2 ** 20, gib: 2 ** 30, tib: 2 ** 40 };

function parseBytes(flag: Flag, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const [, digits, unit = ""] = /^(\d+(?:\.\d+)?) ?(|[kmgt]ib)$/i.exec(text) ?? [];
  const bytes = Math.floor(Number(digits) * (byteUnits[unit.toLowerCase()] ?? 1));
  if (!(bytes >= 1 && bytes <= Number.MAX_SAFE_INTEGER))
    throw new ConfigError(`--${flag} is ${JSON.stringify(text)}, not bytes such as 1073741824, 512MiB or 2GiB`);
  return bytes;
}
