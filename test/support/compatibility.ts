import { readFileSync } from "node:fs";

const text = readFileSync(new URL("../../wrangler.toml", import.meta.url), "utf8");

function read(name: string): string {
  const value = new RegExp(`^${name} = (.*)$`, "m").exec(text)?.[1];
  if (value === undefined) throw new Error(`wrangler.toml has no ${name}: the edge's tests run as what is deployed does`);
  return value;
}

/** How wrangler.toml tells workerd to behave; every workerd that a test starts is told the same. */
export const compatibility = {
  date: JSON.parse(read("compatibility_date")) as string,
  flags: JSON.parse(read("compatibility_flags")) as string[],
};
