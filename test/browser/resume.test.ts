/** What a person sees when the page, the tab or the network goes away in mid-answer: the same answer, whole, in the same place. */
import type { Browser, BrowserContext, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { buildPage } from "../../scripts/build-page.js";
import { ChaosProxy } from "../../scripts/chaos/proxy.js";
import { describeInChromium, launchChromium } from "../support/chromium.js";
import { root } from "../support/edgeProcess.js";
import { type Stack, startStack } from "../support/stack.js";

const question = "Tell me of the mill.";
const showMsMax = 20_000;

// Chromium, workerd under wrangler with the page, and an origin; between page and edge a proxy that can take the network away.
describeInChromium("an answer survives", () => {
  let browser: Browser;
  let stack: Stack;
  let proxy: ChaosProxy;
  let context: BrowserContext;
  let page: Page;
  let isOnline = true;
  let undisturbed = "";

  beforeAll(async () => {
    await buildPage(root);
    const originArgs = ["--simulated-rate", "40", "--simulated-answer", "160"];
    [stack, browser] = await Promise.all([startStack({ edge: "wrangler", originArgs }), launchChromium()]);
    const edgePort = Number(new URL(stack.edgeUrl).port);
    // Port 1 refuses.
    proxy = await ChaosProxy.listen(() => (isOnline ? edgePort : 1));
    await visit();
    await ask();
    undisturbed = await whole(page);
    await context.close();
    expect(undisturbed.split(/\s+/).length).toBeGreaterThan(40);
  }, 90_000);
  afterEach(async () => {
    isOnline = true;
    await context?.close();
  });
  afterAll(async () => {
    await browser?.close();
    await proxy?.close();
    await stack?.stop();
  });

  async function visit(): Promise<void> {
    context = await browser.newContext();
    context.setDefaultTimeout(showMsMax);
    page = await context.newPage();
    // The development server has been seen to leave a first request without an answer; a person would press reload, too.
    const url = `http://127.0.0.1:${proxy.port}`;
    await page.goto(url, { timeout: showMsMax / 4 }).catch(() => page.goto(url));
    await page.locator('#model[data-state="open"]').waitFor();
  }

  async function ask(): Promise<void> {
    await page.fill("#question", question);
    await page.press("#question", "Enter");
  }

  const proseOf = (of: Page) => of.locator("#transcript > li:last-child > .answer > .prose");
  const wordsOf = async (of: Page): Promise<number> => (await proseOf(of).innerText()).split(/\s+/).length;
  const shows = (of: Page, words: number): Promise<void> =>
    expect.poll(() => wordsOf(of), { timeout: showMsMax }).toBeGreaterThan(words) as unknown as Promise<void>;

  /** The newest answer, once it has ended. */
  async function whole(of: Page): Promise<string> {
    await of.locator('#composer[data-state="idle"]').waitFor();
    return proseOf(of).innerText();
  }

  test("F5 in mid-answer", async () => {
    await visit();
    await ask();
    await shows(page, 8);
    await page.reload();
    expect(await page.locator("#transcript > li").count()).toBe(1);
    expect(await page.locator("#transcript .question").innerText()).toContain(question);
    expect(await whole(page)).toBe(undisturbed);
    expect(await page.locator("#transcript > li").count()).toBe(1);
  });

  // What was said before stays too, and the next question carries it along.
  test("F5 after an answer, and another question", async () => {
    await visit();
    await ask();
    await whole(page);
    await page.reload();
    expect(await proseOf(page).innerText()).toBe(undisturbed);
    await page.fill("#question", "And then?");
    await page.press("#question", "Enter");
    await page.locator("#transcript > li:nth-child(2)").waitFor();
    expect(await whole(page)).not.toBe(undisturbed);
    expect(await page.locator("#transcript > li").count()).toBe(2);
  });

  test("a tab that is frozen", async () => {
    await visit();
    await ask();
    await shows(page, 8);
    const devtools = await context.newCDPSession(page);
    await devtools.send("Page.setWebLifecycleState", { state: "frozen" });
    // The network goes away while nobody can notice.
    proxy.disturb("cut");
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    await devtools.send("Page.setWebLifecycleState", { state: "active" });
    expect(await whole(page)).toBe(undisturbed);
  });

  test("offline and online again", async () => {
    await visit();
    await ask();
    await shows(page, 8);
    isOnline = false;
    proxy.disturb("cut");
    await context.setOffline(true);
    await page.locator("#notice:not([hidden])").waitFor();
    isOnline = true;
    await context.setOffline(false);
    await page.locator('#model[data-state="open"]').waitFor();
    expect(await whole(page)).toBe(undisturbed);
    expect(await page.locator("#notice").isHidden()).toBe(true);
  });

  // A duplicated tab reads along, and either may stop the answer for both.
  test("two tabs on one answer, stopped in one of them", async () => {
    await visit();
    await ask();
    await shows(page, 4);
    const [other] = await Promise.all([context.waitForEvent("page"), page.evaluate(() => void window.open(location.href))]);
    await shows(other, 8);
    await other.locator("#send").click();
    const texts = [await whole(page), await whole(other)];
    expect(texts[0]).toBe(texts[1]);
    expect(undisturbed.startsWith((texts[0] as string).slice(0, 20))).toBe(true);
    for (const each of [page, other]) expect(await each.locator("#transcript > li:last-child .note").innerText()).toContain("Stopped");
  });
});
