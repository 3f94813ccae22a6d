import { existsSync } from "node:fs";
import { join } from "node:path";
import type { Browser } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { buildPage } from "../../scripts/build-page.js";
import { defaultModelPath } from "../../scripts/setup/model.js";
import { describeInChromium, launchChromium } from "../support/chromium.js";
import { root } from "../support/edgeProcess.js";
import { type Stack, startStack } from "../support/stack.js";
import { Tab } from "./tab.js";

const isBuilt = existsSync(join(root, "engine/build/millrace.node")) && existsSync(defaultModelPath());

// Nothing on the way is a stand-in: a person opens the page, asks, and reads what a real language model says. `npm test` builds the
// engine and fetches the model first; where that was left out, there is nothing to ask.
describeInChromium("a real model's answer on the page", () => {
  let browser: Browser | undefined;
  let stack: Stack | undefined;

  beforeAll(async () => {
    if (!isBuilt) return;
    await buildPage(root);
    const starting = startStack({ edge: "wrangler", inference: "native", originArgs: ["--model", defaultModelPath(), "--ctx", "2048"] });
    [stack, browser] = await Promise.all([starting, launchChromium()]);
  });
  afterAll(async () => {
    await browser?.close();
    await stack?.stop();
  });

  test.skipIf(!isBuilt)("it is asked, answers in words, and remembers the question", async () => {
    const tab = await Tab.open(browser as Browser, (stack as Stack).edgeUrl);
    expect(await tab.page.locator("#model").innerText()).not.toContain("Simulated");
    await tab.ask("Name the capital of France in one short sentence.");
    await tab.part(".actions button").first().waitFor({ timeout: 60_000 });
    expect(await tab.prose.innerText()).toContain("Paris");
    await tab.ask("And what river runs through it?");
    await expect.poll(async () => (await tab.prose.innerText()).split(/\s+/).length, { timeout: 60_000 }).toBeGreaterThan(2);
    expect(tab.complaints).toEqual([]);
    expect([...tab.asked]).toEqual([new URL((stack as Stack).edgeUrl).host]);
  });
});
