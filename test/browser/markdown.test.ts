import { fileURLToPath } from "node:url";
import type { Browser } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { buildPage } from "../../scripts/build-page.js";
import { describeInChromium, launchChromium } from "../support/chromium.js";
import { ScriptedEdge } from "../support/scriptedEdge.js";
import { Tab } from "./tab.js";

/** Each tries to run a script, load something, or leave the answer's place on the page. */
const attacks = [
  "<script>window.owned = 1</script>",
  "<img src=x onerror='window.owned = 1'>",
  "<svg onload='window.owned = 1'><circle r=9></svg>",
  "<svg><script>window.owned = 1</script></svg>",
  "<iframe src='javascript:parent.owned = 1'></iframe>",
  "<iframe srcdoc='<script>parent.owned = 1</script>'></iframe>",
  "<a href='javascript:window.owned = 1' id=bait>press</a>",
  "[press](javascript:window.owned=1)",
  "[press](JaVaScRiPt:window.owned=1)",
  "[press](java&#115;cript:window.owned=1)",
  "[press](<javascript:window.owned=1>)",
  "[press](\u0001javascript:window.owned=1)",
  "[press](data:text/html,<script>opener.owned=1</script>)",
  "[press](vbscript:msgbox(1))",
  "[press](/v1/tickets)",
  "[press][bait]\n\n[bait]: javascript:window.owned=1",
  "<javascript:window.owned=1>",
  "![x](http://attacker.invalid/pixel.png)",
  '![x" onerror="window.owned=1](http://attacker.invalid/a.png)',
  '[x](http://attacker.invalid/" onmouseover="window.owned=1)',
  "<link rel=stylesheet href=http://attacker.invalid/a.css>",
  "<style>@import 'http://attacker.invalid/b.css'; body { display: none }</style>",
  "<p style='position:fixed;inset:0;background:url(http://attacker.invalid/c.png)'>cover</p>",
  "<meta http-equiv=refresh content='0;url=http://attacker.invalid/'>",
  "<base href='http://attacker.invalid/'>",
  "<form action=http://attacker.invalid/><input name=q autofocus onfocus='window.owned = 1'><button>ok</button></form>",
  "<details open ontoggle='window.owned = 1'>x</details>",
  "<video autoplay src=http://attacker.invalid/v.mp4 onerror='window.owned = 1'></video>",
  "<object data=http://attacker.invalid/o></object><embed src=http://attacker.invalid/e>",
  "<math><mtext><table><mglyph><style><!--</style><img title='--><img src=x onerror=window.owned=1>'>",
  "<noscript><p title='</noscript><img src=x onerror=window.owned=1>'>",
  '```"><img src=x onerror=window.owned=1>\ncode\n```',
  "```js onload=window.owned=1 class=dock\n</code></pre><script>window.owned=1</script>\n```",
  "| <img src=x onerror=window.owned=1> | b |\n|---|---|\n| <script>window.owned=1</script> | [x](javascript:1) |",
  "<div id=question class=composer name=getElementById>clobber</div><img name=body>",
  "<x-y is=z onclick=window.owned=1>custom</x-y><template><script>window.owned=1</script></template>",
];

describeInChromium("Markdown on the page", () => {
  let browser: Browser;
  let edge: ScriptedEdge;
  let tab: Tab;
  let asked = 0;

  beforeAll(async () => {
    const page = await buildPage(fileURLToPath(new URL("../..", import.meta.url)));
    [edge, browser] = await Promise.all([ScriptedEdge.start({ page }), launchChromium()]);
    tab = await Tab.open(browser, edge.url);
  });
  afterAll(async () => {
    await browser?.close();
    await edge?.stop();
  });

  /** Shows one answer, a token at a time. */
  async function answer(texts: string[]): Promise<void> {
    await tab.ask("?");
    const { peer, stream } = await edge.question(++asked);
    peer.answer(stream, texts);
    await tab.settled();
  }

  // Everything hostile is shown as text or left out: nothing runs, nothing is loaded, nothing leaves its place.
  test.each(attacks)("is inert: %s", async (attack) => {
    await answer([`before\n\n${attack.slice(0, 7)}`, ...(attack.slice(7).match(/.{1,9}/gsu) ?? []), "\n\nafter"]);
    const found = await tab.prose.evaluate((prose) => {
      const known = new Set(
        "p br strong em del code pre blockquote ul ol li h3 h4 h5 h6 hr a table thead tbody tr th td div span button svg path".split(" "),
      );
      const parts = [...prose.querySelectorAll("*")];
      for (const link of prose.querySelectorAll("a")) link.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
      return {
        unknown: parts.map((part) => part.localName).filter((name) => !known.has(name)),
        handlers: parts.flatMap((part) => part.getAttributeNames()).filter((name) => /^on|^style$|^name$|^id$|^src/.test(name)),
        classes: parts
          .map((part) => part.getAttribute("class") ?? "")
          .filter((name) => !/^(|growing|code|caption|table|action)$/.test(name)),
        addresses: [...prose.querySelectorAll("a[href]")]
          .map((link) => (link as HTMLAnchorElement).href)
          .filter((href) => !/^(https?:\/\/|mailto:)/.test(href)),
        unsafe: [...prose.querySelectorAll("a")].filter((link) => link.rel !== "noopener noreferrer" || link.target !== "_blank").length,
        owned: "owned" in window,
      };
    });
    expect(found).toEqual({ unknown: [], handlers: [], classes: [], addresses: [], unsafe: 0, owned: false });
    expect(await tab.prose.innerText()).toMatch(/^before.*after$/s);
    expect(await tab.page.locator("#question").count()).toBe(1);
    expect(tab.complaints).toEqual([]);
    expect([...tab.asked]).toEqual([`127.0.0.1:${edge.port}`]);
  });

  test("what is meant well looks as it should", async () => {
    await answer([
      "# Title\n\nSee [the docs](https://example.com/a?b=1), **bold** and `x < y`.\n\n",
      "3. three\n4. four\n   - nested\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n> quoted\n\n- [x] done\n\n```ts\nconst a = 1;\n```\n",
    ]);
    expect(await tab.prose.locator("h3").innerText()).toBe("Title");
    expect(await tab.prose.locator("a").getAttribute("href")).toBe("https://example.com/a?b=1");
    expect(await tab.prose.locator("p code").innerText()).toBe("x < y");
    expect(await tab.prose.locator("ol").getAttribute("start")).toBe("3");
    expect(await tab.prose.locator("td").nth(1).getAttribute("align")).toBe("right");
    expect(await tab.prose.locator("blockquote").innerText()).toBe("quoted");
    expect(await tab.prose.getByText("☑ done").count()).toBe(1);
    expect(await tab.prose.locator(".caption span").first().innerText()).toBe("ts");
    expect(await tab.prose.locator("pre").textContent()).toBe("const a = 1;\n");
  });

  // Blocks that are complete are never touched again: a reader may select and copy in them while the rest arrives.
  test("only the last block is rendered again", async () => {
    await tab.ask("?");
    const { peer, stream } = await edge.question(++asked);
    const texts = ["First **block**.\n\n", "Second", " block.\n\n", "- third\n", "- list"];
    peer.tokens(stream, texts.slice(0, 2));
    await tab.shows("Second");
    await tab.prose
      .locator("p")
      .first()
      .evaluate((block) => block.setAttribute("data-kept", ""));
    peer.tokens(stream, texts.slice(2), 3);
    await tab.shows("list");
    peer.done(stream, texts);
    await tab.settled();
    expect(await tab.prose.locator("[data-kept]").innerText()).toBe("First block.");
    expect(await tab.prose.locator("> *").evaluateAll((blocks) => blocks.map((block) => block.localName))).toEqual(["p", "p", "ul"]);
  });
});
