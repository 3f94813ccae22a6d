import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import type { Browser } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { buildPage } from "../../scripts/build-page.js";
import { Op } from "../../shared/protocol.js";
import { describeInChromium, launchChromium } from "../support/chromium.js";
import { ScriptedEdge } from "../support/scriptedEdge.js";
import { Tab } from "./tab.js";

const rich =
  "# Heading\n\nText with a [link](https://example.com) and `code`.\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```js\nlet a = 1;\n```\n\n> quote\n";

describeInChromium("the page is for everybody", () => {
  let browser: Browser;
  let page: string;
  let axe: string;
  let edge: ScriptedEdge;
  let tab: Tab | undefined;

  beforeAll(async () => {
    const root = fileURLToPath(new URL("../..", import.meta.url));
    const axePath = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
    [page, browser, axe] = await Promise.all([buildPage(root), launchChromium(), readFile(axePath, "utf8")]);
  });
  afterAll(() => browser?.close());
  beforeEach(async () => {
    edge = await ScriptedEdge.start({ page });
  });
  afterEach(async () => {
    await tab?.close();
    await edge.stop();
  });

  async function violations(of: Tab): Promise<string[]> {
    await of.page.evaluate(axe);
    const results = await of.page.evaluate(() => (window as unknown as { axe: typeof import("axe-core") }).axe.run());
    return results.violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html).join(" ")}`);
  }

  // Contrast, names, roles and structure, in each state that the page can be in.
  test.each(["light", "dark"] as const)("axe finds nothing, %s", async (colorScheme) => {
    tab = await Tab.open(browser, edge.url, { colorScheme, reducedMotion: "reduce" });
    expect(await violations(tab)).toEqual([]);
    await tab.ask("Everything, please.");
    const first = await edge.question(1);
    first.peer.tokens(first.stream, [rich.slice(0, 60)]);
    await tab.shows("Heading");
    expect(await violations(tab)).toEqual([]);
    first.peer.tokens(first.stream, [rich.slice(60)], 2);
    first.peer.done(first.stream, [rich.slice(0, 60), rich.slice(60)]);
    await tab.settled();
    expect(await violations(tab)).toEqual([]);
    await tab.ask("Once more.");
    const second = await edge.question(2);
    second.peer.tokens(second.stream, ["Half"]);
    await tab.shows("Half");
    second.peer.send([Op.ERROR, second.stream, "internal", "the engine failed", 0]);
    await tab.part(".broken").waitFor();
    edge.script.onOpen = (peer) => peer.refuse("origin_unreachable");
    second.peer.socket.terminate();
    await tab.page.locator("#notice").waitFor();
    expect(await violations(tab)).toEqual([]);
  });

  test("axe finds nothing on a phone", async () => {
    tab = await Tab.open(browser, edge.url, { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true });
    await tab.ask("?");
    const { peer, stream } = await edge.question();
    peer.answer(stream, [rich]);
    await tab.settled();
    expect(await violations(tab)).toEqual([]);
    expect(await tab.page.evaluate(() => document.documentElement.scrollWidth - innerWidth)).toBeLessThanOrEqual(0);
  });

  // Asking, breaking a line, stopping, copying and asking again without a mouse; the focus is always somewhere one can see.
  test("the keyboard is enough", async () => {
    tab = await Tab.open(browser, edge.url);
    const { keyboard } = tab.page;
    const focused = () =>
      (tab as Tab).page.evaluate(() => {
        const { activeElement: element } = document;
        const outline = element ? getComputedStyle(element).outlineStyle !== "none" || element.matches("#question, body") : false;
        return { name: element?.getAttribute("aria-label") ?? element?.textContent?.trim() ?? "", outline };
      });
    const tabTo = async (name: string): Promise<void> => {
      for (let presses = 0; presses < 40; presses++) {
        await keyboard.press("Tab");
        const focus = await focused();
        expect(focus).toMatchObject({ outline: true });
        if (focus.name === name) return;
      }
      throw new Error(`Tab never reaches ${name}`);
    };
    // Who arrives may type at once; who has wandered to the top is led back.
    expect(await tab.page.evaluate(() => document.activeElement?.id)).toBe("question");
    await tabTo("Skip to the question box");
    await keyboard.press("Enter");
    await keyboard.type("One line");
    await keyboard.press("Shift+Enter");
    await keyboard.type("and another");
    await keyboard.press("Enter");
    const first = await edge.question(1);
    expect(first.messages).toEqual([["user", "One line\nand another"]]);
    first.peer.tokens(first.stream, ["Going on"]);
    await tab.shows("Going on");
    await keyboard.press("Escape");
    first.peer.done(first.stream, ["Going on"], "cancelled");
    await tab.settled();
    await tab.page.locator("body").evaluate(() => (document.activeElement as HTMLElement).blur());
    await tabTo("Copy the answer");
    await tabTo("Retry");
    await keyboard.press("Enter");
    const second = await edge.question(2);
    second.peer.answer(second.stream, ["Done."]);
    await tab.settled();
    expect(await tab.page.evaluate(() => document.activeElement?.id)).toBe("question");
    await tabTo("New chat");
    await keyboard.press("Space");
    await tab.page.getByText("What shall we talk about?").waitFor();
  });

  // A screen reader hears that an answer comes and then each block once, never a token.
  test("the live region speaks in blocks", async () => {
    tab = await Tab.open(browser, edge.url);
    await tab.page.evaluate(() => {
      const heard: string[] = [];
      Object.assign(window, { heard });
      const watch = (changes: MutationRecord[]) => {
        for (const change of changes) for (const node of change.addedNodes) heard.push(node.textContent ?? "");
      };
      new MutationObserver(watch).observe(document.getElementById("announcer") as HTMLElement, {
        childList: true,
        subtree: true,
        characterData: true,
      });
    });
    await tab.ask("Speak?");
    const { peer, stream } = await edge.question();
    const texts = ["One ", "sentence.", "\n\n", "Another ", "**one**."];
    for (const [index, text] of texts.entries()) {
      peer.tokens(stream, [text], index + 1);
      if (text.trim() !== "") await tab.shows(text.replaceAll("*", "").trim());
    }
    peer.done(stream, texts);
    await tab.settled();
    const heard = await tab.page.evaluate(() => (window as unknown as { heard: string[] }).heard);
    expect(heard).toEqual(["Answering.", "One sentence.", "Another one.", "End of the answer."]);
  });

  test("the theme follows the system until one is chosen, which is remembered", async () => {
    tab = await Tab.open(browser, edge.url, { colorScheme: "dark" });
    const paper = () => (tab as Tab).page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
    const dark = await paper();
    await tab.page.getByRole("button", { name: "Switch to light colours" }).click();
    const light = await paper();
    expect(light).not.toBe(dark);
    await tab.page.reload();
    expect(await paper()).toBe(light);
    await tab.page.getByRole("button", { name: "Switch to dark colours" }).click();
    expect(await paper()).toBe(dark);
  });

  test("nothing moves for who asked for stillness", async () => {
    tab = await Tab.open(browser, edge.url, { reducedMotion: "reduce" });
    await tab.ask("?");
    await edge.question();
    await tab.part(".dots").waitFor();
    expect(await tab.page.evaluate(() => document.getAnimations().length)).toBe(0);
  });
});
