/** A real Chromium for the browser tests, or a line that says how to get one. */
import { existsSync } from "node:fs";
import { type Browser, chromium } from "playwright-core";
import { describe } from "vitest";

const usual = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome", "/usr/bin/google-chrome-stable"];
const places = process.env.CHROMIUM_PATH ? [process.env.CHROMIUM_PATH] : usual;
const path = places.find((place) => existsSync(place));

const missing = `browser tests are skipped: no Chromium at ${places.join(", ")}; install it with: apt-get install chromium (or name one in CHROMIUM_PATH)`;

/** Like vitest's describe, but skipped with a line where there is no Chromium. Under CI=true that is a failure. */
export const describeInChromium: typeof describe | typeof describe.skip = path === undefined ? withoutChromium() : describe;

function withoutChromium(): typeof describe.skip {
  if (process.env.CI === "true") throw new Error(missing.replace("are skipped", "cannot run"));
  console.warn(missing);
  return describe.skip;
}

export function launchChromium(): Promise<Browser> {
  if (path === undefined) throw new Error(missing);
  return chromium.launch({
    executablePath: path,
    args: [
      ...["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
      ...["--disable-background-networking", "--disable-component-update", "--disable-sync"],
    ],
  });
}
