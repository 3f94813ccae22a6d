import { limits } from "../../shared/limits.js";
import type { Bindings } from "../bindings.js";
import { unconfigured } from "../keys.js";
import { edgeLimits } from "../limits.js";

export interface Origin {
  /** The audience of the assertions meant for it, and in resume tokens the place to come back to. At any time one process has it. */
  name: string;
  /** Where it is, by http or https; its paths are `/v1/stream` and `/readyz`. */
  url: string;
}

const expected = `a JSON array of 1 to ${edgeLimits.originsMax} of {"name", "url"}`;

/** The origins of ORIGINS. @throws MillraceError `edge_unconfigured` */
export function originsOf(bindings: Bindings): Origin[] {
  if (!bindings.ORIGINS) throw unconfigured(`ORIGINS is not set; it takes ${expected}`);
  const list = parse(bindings.ORIGINS);
  if (!Array.isArray(list) || list.length < 1 || list.length > edgeLimits.originsMax) throw unconfigured(`ORIGINS is not ${expected}`);
  const names = new Set<string>();
  return list.map((entry, index) => {
    const { name, url } = (entry ?? {}) as Partial<Origin>;
    if (typeof name !== "string" || name === "" || name.length > limits.nameBytesMax)
      throw unconfigured(`ORIGINS[${index}] has no name of 1 to ${limits.nameBytesMax} characters`);
    if (names.has(name)) throw unconfigured(`ORIGINS[${index}] is a second one of the name ${name}`);
    names.add(name);
    if (typeof url !== "string" || !/^https?:$/.test(protocolOf(url)))
      throw unconfigured(`ORIGINS[${index}] (${name}) has no http or https url`);
    return { name, url };
  });
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function protocolOf(url: string): string {
  return URL.canParse(url) ? new URL(url).protocol : "";
}
