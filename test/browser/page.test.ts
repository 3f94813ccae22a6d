import { fileURLToPath } from "node:url";
import type { Browser } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { buildPage } from "../../scripts/build-page.js";
import { Op, type Resume } from "../../shared/protocol.js";
import { describeInChromium, launchChromium } from "../support/chromium.js";
import { hello, ScriptedEdge } from "../support/scriptedEdge.js";
import { Tab } from "./tab.js";

describeInChromium("the page", () => {
  let browser: Browser;
  let page: string;
  let edge: ScriptedEdge;
  let tab: Tab;

  beforeAll(async () => {
    [page, browser] = await Promise.all([buildPage(fileURLToPath(new URL("../..", import.meta.url))), launchChromium()]);
    tab = await Tab.open(browser);
  });
  afterAll(() => browser?.close());
  beforeEach(async () => {
    edge = await ScriptedEdge.start({ page });
    await tab.visit(edge.url);
  });
  afterEach(() => edge.stop());

  // The reader sees each piece when it comes, under the question, and the figures once it is over.
  test("an answer arrives piece by piece", async () => {
    await tab.ask("Why is the sky blue?");
    const { peer, stream, messages, options } = await edge.question();
    expect(messages).toEqual([["user", "Why is the sky blue?"]]);
    expect(options.overflow).toBe("drop_oldest");
    peer.started(stream);
    const texts = ["Because ", "blue ", "light ", "scatters."];
    for (const [index, text] of texts.entries()) {
      peer.tokens(stream, [text], index + 1);
      await tab.shows(
        texts
          .slice(0, index + 1)
          .join("")
          .trim(),
      );
    }
    peer.done(stream, texts);
    await tab.settled();
    expect(await tab.page.locator(".question").innerText()).toContain("Why is the sky blue?");
    expect(await tab.part(".readout").innerText()).toMatch(/First token\s+\d+ ms\s+Speed\s+[\d.]+ tokens\/s\s+p99 gap\s+\d+ ms/);
    expect(await tab.page.locator("#model").innerText()).toContain(hello.model);
    expect(tab.complaints).toEqual([]);
    expect([...tab.asked]).toEqual([`127.0.0.1:${edge.port}`]);
  });

  // A second question carries the first and its answer along.
  test("the conversation goes on", async () => {
    await tab.ask("One?");
    const first = await edge.question(1);
    first.peer.answer(first.stream, ["Yes."]);
    await tab.settled();
    await tab.ask("Two?");
    expect((await edge.question(2)).messages).toEqual([
      ["user", "One?"],
      ["assistant", "Yes."],
      ["user", "Two?"],
    ]);
  });

  test.each([
    ["the button", () => tab.page.click("#send")],
    ["Escape", () => tab.page.keyboard.press("Escape")],
  ])("%s stops an answer and keeps its text", async (_, stop) => {
    await tab.ask("Count to a thousand.");
    const { peer, stream } = await edge.question();
    peer.tokens(stream, ["one two"]);
    await tab.shows("one two");
    await stop();
    expect(await peer.next(Op.CANCEL)).toEqual([Op.CANCEL, stream]);
    peer.done(stream, ["one two"], "cancelled");
    await tab.settled();
    expect(await tab.prose.innerText()).toBe("one two");
    expect(await tab.part(".note").innerText()).toBe("Stopped.");
  });

  test("Retry asks the same again, and what it showed folds away above", async () => {
    await tab.ask("A riddle?");
    const first = await edge.question(1);
    first.peer.answer(first.stream, ["A poor one."]);
    await tab.part(".retry").click();
    const second = await edge.question(2);
    expect(second.messages).toEqual([["user", "A riddle?"]]);
    expect(await tab.part("details[open] .prose").innerText()).toBe("A poor one.");
    second.peer.answer(second.stream, ["A better one."]);
    await tab.shows("A better one.");
    expect(await tab.part("details .prose").isVisible()).toBe(false);
    await tab.page.getByText("Earlier attempt").click();
    expect(await tab.part("details .prose").innerText()).toBe("A poor one.");
  });

  test("Copy takes the Markdown, and a code block's button its code", async () => {
    await tab.page.context().grantPermissions(["clipboard-read", "clipboard-write"], { origin: edge.url });
    await tab.ask("Code?");
    const { peer, stream } = await edge.question();
    const text = "Take **this**:\n\n```js\nlet a = 1 < 2;\n```\n";
    peer.answer(stream, [text]);
    const copied = () => tab.page.evaluate(() => navigator.clipboard.readText());
    await tab.part("footer").getByRole("button", { name: "Copy the answer" }).click();
    await tab.part("footer").getByText("Copied").waitFor();
    expect(await copied()).toBe(text);
    await tab.prose.getByRole("button", { name: "Copy the code" }).click();
    await tab.prose.getByText("Copied").waitFor();
    expect(await copied()).toBe("let a = 1 < 2;\n");
  });

  test("waiting shows the place in the queue", async () => {
    await tab.ask("Busy?");
    const { peer, stream } = await edge.question();
    peer.send([Op.QUEUED, stream, 3]);
    await tab.part(".waiting").getByText("You are number 3 in the queue.").waitFor();
    peer.send([Op.QUEUED, stream, 1]);
    await tab.part(".waiting").getByText("You are next in the queue.").waitFor();
    peer.answer(stream, ["Now."]);
    await tab.settled();
    expect(await tab.part(".waiting").isVisible()).toBe(false);
  });

  test("turns that were left out are told", async () => {
    await tab.ask("And then?");
    const { peer, stream } = await edge.question();
    peer.started(stream, 4);
    peer.tokens(stream, ["Then this."]);
    await tab.part(".left-out").getByText("the 4 oldest messages were left out").waitFor();
  });

  // A socket is nothing to a reader: the answer goes on in its place, and nothing is said of it.
  test("an answer outlives its socket", async () => {
    const texts = ["Once upon a time ", "there was ", "a mill."];
    await tab.ask("A long story?");
    const { peer, stream } = await edge.question();
    peer.started(stream);
    peer.tokens(stream, texts.slice(0, 2));
    await tab.shows("Once upon a time there was");
    const sockets = edge.peers.length;
    peer.socket.terminate();
    const next = await edge.connected(sockets + 1);
    const [, resumed, , response, seq] = await next.next<Resume>(Op.RESUME);
    next.send([Op.RESUMED, resumed, response, 3, 12, 0]);
    next.tokens(resumed, texts.slice(seq), seq + 1);
    next.done(resumed, texts);
    await tab.settled();
    expect(await tab.prose.innerText()).toBe(texts.join(""));
    expect(await tab.page.locator("#notice").isVisible()).toBe(false);
    expect(await tab.page.locator("#transcript > li").count()).toBe(1);
  });

  // F5: the same bubble, the same question above it, and no ticket; what was said before is carried along as ever.
  test("an answer outlives its page", async () => {
    const texts = ["Once upon a time ", "there was ", "a mill."];
    await tab.ask("Hello?");
    const hello = await edge.question(1);
    hello.peer.answer(hello.stream, ["Yes."]);
    await tab.settled();
    await tab.ask("A long story?");
    const { peer, stream } = await edge.question(2);
    peer.started(stream);
    peer.tokens(stream, texts.slice(0, 2));
    await tab.shows("Once upon a time there was");
    const sockets = edge.peers.length;
    await tab.page.reload();
    const next = await edge.connected(sockets + 1);
    expect(next.protocols).toEqual(["millrace.v1", "resume.token-1"]);
    const [, resumed, , response, seq] = await next.next<Resume>(Op.RESUME);
    expect([response, seq]).toEqual([`response-${stream}`, 2]);
    await tab.shows("Once upon a time there was");
    next.send([Op.RESUMED, resumed, response, 3, 12, 0]);
    next.tokens(resumed, texts.slice(2), 3);
    next.done(resumed, texts);
    await tab.settled();
    expect(await tab.prose.innerText()).toBe(texts.join(""));
    expect(await tab.page.locator(".question").allInnerTexts()).toEqual(["You asked\n\nHello?", "You asked\n\nA long story?"]);
    await tab.page.reload();
    await tab.ask("And then?");
    expect((await edge.question(3)).messages).toEqual([
      ["user", "Hello?"],
      ["assistant", "Yes."],
      ["user", "A long story?"],
      ["assistant", texts.join("")],
      ["user", "And then?"],
    ]);
    expect(tab.complaints).toEqual([]);
  });

  // What cannot be had any more is told; nothing of what was shown is lost, and Retry asks again.
  test("an answer that is lost for good", async () => {
    await tab.ask("A long story?");
    const first = await edge.question(1);
    first.peer.started(first.stream);
    first.peer.tokens(first.stream, ["Once upon a time ", "there was"]);
    await tab.shows("Once upon a time there was");
    const sockets = edge.peers.length;
    first.peer.socket.terminate();
    const next = await edge.connected(sockets + 1);
    next.send([Op.EXPIRED, (await next.next<Resume>(Op.RESUME))[1], 9, "stop"]);
    await tab.part(".broken").getByText("The answer broke off. What had arrived is kept.").waitFor();
    expect(await tab.part(".broken").innerText()).toContain("its text is not kept any more");
    expect(await tab.prose.innerText()).toBe("Once upon a time there was");
    await tab.part(".broken").getByRole("button", { name: "Retry" }).click();
    const second = await edge.question(2);
    second.peer.answer(second.stream, ["The end."]);
    await tab.shows("The end.");
    await tab.connected();
    expect(await tab.part(".broken").isVisible()).toBe(false);
    expect(await tab.part("details .prose").textContent()).toContain("Once upon a time there was");
  });

  test("a refusal's sentence is shown", async () => {
    await tab.ask("Everything?");
    const { peer, stream } = await edge.question();
    peer.send([Op.ERROR, stream, "context_exceeded", "the prompt's 9000 tokens are over the context of 2048", 0]);
    await tab.part(".broken").getByText("This conversation is too long for the model.").waitFor();
    expect(await tab.part(".broken").innerText()).toContain("The prompt's 9000 tokens are over the context of 2048.");
  });

  test("garbage from the origin is told, and the page lives on", async () => {
    await tab.ask("Hm?");
    const first = await edge.question(1);
    first.peer.raw(Uint8Array.of(0xc1, 0, 255));
    await tab.part(".broken").getByText("the frame cannot be read", { exact: false }).waitFor();
    await tab.part(".retry").click();
    const second = await edge.question(2);
    second.peer.answer(second.stream, ["Fine now."]);
    await tab.shows("Fine now.");
  });

  // While no origin answers, the page says so, keeps trying, and needs nobody to press anything.
  test("it finds its way back by itself", async () => {
    edge.script.onOpen = (peer) => peer.refuse("model_loading", "the model is loading");
    edge.peer.socket.terminate();
    await tab.page.locator("#notice").getByText("The model is still loading.").waitFor();
    expect(await tab.page.locator("#model").innerText()).toContain("Not connected");
    edge.script = { page };
    await tab.connected();
    expect(await tab.page.locator("#notice").isVisible()).toBe(false);
  });

  test("a refusal that stays is not tried again until asked", async () => {
    edge.script.onOpen = (peer) => peer.refuse("credential_missing", "this edge asks for a JWT");
    edge.peer.socket.terminate();
    await tab.page.locator("#notice").getByText("This edge asks for a JWT.").waitFor();
    expect(await tab.page.locator("#notice").innerText()).not.toContain("Trying again");
    edge.script = { page };
    await tab.page.locator("#notice").getByRole("button", { name: "Try now" }).click();
    await tab.connected();
  });

  test("a simulated engine shows itself", async () => {
    edge.script.onOpen = (peer) => peer.hello({ engine: "simulated" });
    await tab.page.reload();
    await tab.connected();
    expect(await tab.page.locator("#model").innerText()).toContain("Simulated engine");
    expect(await tab.page.locator("#caution").innerText()).toContain("not from a model");
  });

  // The page stays where the reader scrolled to, and follows again when asked to.
  test("scrolling up stops the following", async () => {
    await tab.ask("Lines?");
    const { peer, stream } = await edge.question();
    const lines = (from: number): string[] => Array.from({ length: 60 }, (_, index) => `${from + index}\n\n`);
    const fromEnd = () => tab.page.evaluate(() => document.documentElement.scrollHeight - innerHeight - scrollY);
    peer.tokens(stream, lines(100));
    await tab.shows("159");
    await expect.poll(fromEnd).toBeLessThan(2);
    await tab.page.mouse.move(600, 400);
    await tab.page.mouse.wheel(0, -600);
    await tab.page.locator("#jump").waitFor();
    const top = await tab.page.evaluate(() => scrollY);
    peer.tokens(stream, lines(200), 61);
    await tab.shows("259");
    expect(await tab.page.evaluate(() => scrollY)).toBe(top);
    await tab.page.click("#jump");
    expect(await fromEnd()).toBeLessThan(2);
    peer.tokens(stream, lines(300), 121);
    await tab.shows("359");
    await expect.poll(fromEnd).toBeLessThan(2);
    expect(await tab.page.locator("#jump").isVisible()).toBe(false);
  });

  test("New chat stops what runs and forgets what was said", async () => {
    await tab.ask("Something?");
    const first = await edge.question(1);
    first.peer.tokens(first.stream, ["Something."]);
    await tab.shows("Something.");
    await tab.page.getByRole("button", { name: "New chat" }).click();
    await first.peer.next(Op.CANCEL);
    await tab.page.getByText("What shall we talk about?").waitFor();
    await tab.page.getByRole("button", { name: "Why is the sky blue?" }).click();
    expect((await edge.question(2)).messages).toEqual([["user", "Why is the sky blue?"]]);
  });
});
