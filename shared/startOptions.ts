/** START's options: which there are, and how each is read. */
import { isClassName } from "./classes.js";
import { limits } from "./limits.js";
import { type Format, formatKinds, type StartOptions } from "./protocol.js";
import { boolean, invalid, map, nameText, oneOf, shown, tokenIds, within } from "./readers.js";

/** How each option is read. Its keys are the options there are. */
const optionReaders: { [Name in keyof Required<StartOptions>]: (value: unknown, name: string) => Required<StartOptions>[Name] } = {
  maxTokens: (value, name) => within(value, name, 1, 0xffff_ffff, true),
  temperature: (value, name) => within(value, name, 0, 10),
  topK: (value, name) => within(value, name, 0, 0x7fff_ffff, true),
  topP: (value, name) => within(value, name, 0, 1),
  minP: (value, name) => within(value, name, 0, 1),
  repetitionPenalty: (value, name) => within(value, name, 0.1, 10),
  presencePenalty: (value, name) => within(value, name, -10, 10),
  frequencyPenalty: (value, name) => within(value, name, -10, 10),
  seed: (value, name) => within(value, name, 0, Number.MAX_SAFE_INTEGER, true),
  stop: parseStops,
  minTokens: (value, name) => within(value, name, 0, 0xffff_ffff, true),
  ignoreEos: boolean,
  logitBias: parseBias,
  logprobs: (value, name) => within(value, name, 0, limits.logprobsMax, true),
  class: (value, name) => {
    if (!isClassName(value)) throw invalid(`${name} is ${shown(value)}, not "voice", "chat" or "batch"`);
    return value;
  },
  format: parseFormat,
  ttftMs: (value, name) => within(value, name, 1, limits.ttftMsMax),
  itlMs: (value, name) => within(value, name, 1, limits.itlMsMax),
  waitMs: (value, name) => within(value, name, 0, limits.waitMsMax),
  overflow: (value, name) => oneOf(value, ["refuse", "drop_oldest"] as const, name),
  after: nameText,
  key: nameText,
  attempt: (value, name) => within(value, name, 1, 0xffff_ffff, true),
  sentTo: nameText,
  tokenIds: boolean,
  continueIds: tokenIds,
  creditSeq: (value, name) => within(value, name, 0, Number.MAX_SAFE_INTEGER, true),
  graceMs: (value, name) => within(value, name, 0, Number.MAX_SAFE_INTEGER),
};

/** @throws MillraceError `field_invalid`, also for an option that is unknown. */
export function parseOptions(value: unknown): StartOptions {
  const options: Record<string, unknown> = {};
  for (const [name, given] of Object.entries(map(value, "options"))) {
    if (!Object.hasOwn(optionReaders, name))
      throw invalid(`option ${JSON.stringify(name.slice(0, 64))} is unknown; there are ${Object.keys(optionReaders).join(", ")}`);
    options[name] = optionReaders[name as keyof StartOptions](given, name);
  }
  return options as StartOptions;
}

function parseStops(value: unknown, name: string): string[] {
  if (!Array.isArray(value) || value.length > limits.stopsMax) throw invalid(`${name} is not an array of at most ${limits.stopsMax} texts`);
  for (const text of value) {
    const bytes = typeof text === "string" ? new TextEncoder().encode(text).length : 0;
    if (bytes < 1 || bytes > limits.stopBytesMax)
      throw invalid(`${name} has ${shown(text)}, which is not a text of 1 to ${limits.stopBytesMax} bytes`);
  }
  return value as string[];
}

/** Keys are token ids, in decimal: MessagePack integers arrive as such too. */
function parseBias(value: unknown, name: string): Record<string, number> {
  const entries = Object.entries(map(value, name));
  if (entries.length > limits.logitBiasMax) throw invalid(`${name} has ${entries.length} tokens, over ${limits.logitBiasMax}`);
  for (const [id, bias] of entries) {
    if (!/^(0|[1-9]\d{0,9})$/.test(id)) throw invalid(`${name} has ${shown(id)}, which is not a token id`);
    within(bias, `${name} of token ${id}`, -100, 100);
  }
  return Object.fromEntries(entries) as Record<string, number>;
}

function parseFormat(value: unknown, name: string): Format {
  const { kind, text: given, ...others } = map(value, name);
  const [strange] = Object.keys(others);
  if (strange !== undefined) throw invalid(`${name} has ${shown(strange)}; it has kind and text`);
  const bytes = typeof given === "string" ? new TextEncoder().encode(given).length : 0;
  if (bytes < 1 || bytes > limits.formatBytesMax) throw invalid(`${name}'s text is not a text of 1 to ${limits.formatBytesMax} bytes`);
  return { kind: oneOf(kind, formatKinds, `${name}'s kind`), text: given as string };
}
