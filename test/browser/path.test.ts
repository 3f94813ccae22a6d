import { importJWK, SignJWT } from "jose";
import type { Browser } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { buildPage } from "../../scripts/build-page.js";
import { makeEdgeKeyPair } from "../../scripts/dev-keys.js";
import { decodeServerMessage } from "../../shared/codec.js";
import { closeCodeOf, type ErrorCode } from "../../shared/errors.js";
import { Op } from "../../shared/protocol.js";
import { describeInChromium, launchChromium } from "../support/chromium.js";
import { root } from "../support/edgeProcess.js";
import { type Stack, startStack } from "../support/stack.js";
import { Tab } from "./tab.js";

// Chromium, the edge in workerd under wrangler with the page, and a real origin; only the words come from a clock.
describeInChromium("the whole path, from a browser", () => {
  let browser: Browser;
  let stack: Stack;
  let tab: Tab;

  beforeAll(async () => {
    await buildPage(root);
    [stack, browser] = await Promise.all([startStack({ edge: "wrangler" }), launchChromium()]);
    tab = await Tab.open(browser, stack.edgeUrl);
  });
  afterAll(async () => {
    await browser?.close();
    await stack?.stop();
  });

  /** How many times the newest answer changes on the page until it has ended. */
  async function updates(act: () => Promise<void>): Promise<number> {
    await tab.page.evaluate(() => {
      Object.assign(window, { updates: 0 });
      const count = () => {
        (window as unknown as { updates: number }).updates++;
      };
      new MutationObserver(count).observe(document.getElementById("transcript") as HTMLElement, { childList: true, subtree: true });
    });
    await act();
    return tab.page.evaluate(() => (window as unknown as { updates: number }).updates);
  }

  test("an answer arrives in many updates, then its figures", async () => {
    const count = await updates(async () => {
      await tab.page.getByRole("button", { name: "Why is the sky blue?" }).click();
      await expect.poll(async () => (await tab.prose.innerText()).split(/\s+/).length, { timeout: 10_000 }).toBeGreaterThan(20);
      await tab.page.keyboard.press("Escape");
      await tab.settled();
    });
    expect(count).toBeGreaterThan(10);
    expect(await tab.part(".note").innerText()).toBe("Stopped.");
    expect(await tab.part(".readout").innerText()).toMatch(/\d+ ms\s+Speed\s+[\d.]+ tokens\/s/);
    expect(await tab.page.locator("#model").innerText()).toContain("Simulated engine");
    expect(tab.complaints).toEqual([]);
    expect([...tab.asked]).toEqual([new URL(stack.edgeUrl).host]);
  });

  test("the page is served under a strict policy", async () => {
    const answer = await tab.page.request.get(stack.edgeUrl);
    const policy = answer.headers()["content-security-policy"] ?? "";
    expect(policy).toContain("default-src 'none'");
    expect(policy).not.toContain("unsafe");
  });

  // The text stays, the page says what happened and comes back by itself, and the answer goes on in its place.
  test("the origin is killed mid-answer", async () => {
    await tab.ask("Tell me a long story.");
    await expect.poll(async () => (await tab.prose.innerText()).split(/\s+/).length, { timeout: 10_000 }).toBeGreaterThan(10);
    await stack.killOrigin();
    await tab.page.locator("#notice").waitFor();
    expect(await tab.page.locator("#model").innerText()).toContain("Not connected");
    const words = (await tab.prose.innerText()).split(/\s+/);
    expect(words.length).toBeGreaterThan(10);
    await stack.restartOrigin();
    await tab.connected();
    await expect.poll(async () => (await tab.prose.innerText()).split(/\s+/).length, { timeout: 10_000 }).toBeGreaterThan(words.length);
    expect((await tab.prose.innerText()).split(/\s+/).slice(0, 10)).toEqual(words.slice(0, 10));
    await tab.page.click("#send");
    await tab.settled();
    expect(await tab.part(".note").innerText()).toBe("Stopped.");
    expect(await tab.part(".broken").count()).toBe(0);
  });

  /** Opens a socket as a page would, sends what is given once it has HELLO, and tells how it ended. */
  async function socket(protocols: string[], sent?: "text" | "garbage" | "10 MB") {
    const end = await tab.page.evaluate(
      ({ protocols, sent }) =>
        new Promise<{ code: number; frames: number[][] }>((resolve) => {
          const socket = new WebSocket(`ws://${location.host}/v1/stream`, protocols);
          const frames: number[][] = [];
          socket.binaryType = "arraybuffer";
          socket.onmessage = ({ data }) => {
            frames.push([...new Uint8Array(data as ArrayBuffer)]);
            if (frames.length > 1 || sent === undefined) return;
            if (sent === "text") socket.send("hello");
            else socket.send(sent === "garbage" ? Uint8Array.of(0xc1, 1, 2) : new Uint8Array(10_000_000));
          };
          socket.onclose = ({ code }) => resolve({ code, frames });
        }),
      { protocols, sent },
    );
    const messages = end.frames.map((frame) => decodeServerMessage(Uint8Array.from(frame)));
    return { code: end.code, last: messages.at(-1) };
  }

  async function ticket(): Promise<string> {
    return tab.page.evaluate(async () => ((await (await fetch("/v1/tickets", { method: "POST" })).json()) as { ticket: string }).ticket);
  }

  /** A ticket like the edge's own. */
  async function forged(jwk: object, ageS: number): Promise<string> {
    const issuedAt = Math.floor(Date.now() / 1_000) - ageS;
    const claims = { tenant: "test", class: "chat", limits: { streamsMax: 1, tokensMax: 1 }, page: stack.edgeUrl };
    return new SignJWT(claims)
      .setProtectedHeader({ alg: "EdDSA", typ: "millrace-ticket+jwt" })
      .setIssuer("millrace-edge")
      .setSubject("mallory")
      .setIssuedAt(issuedAt)
      .setExpirationTime(issuedAt + 60)
      .setJti("forged")
      .sign(await importJWK(jwk, "EdDSA"));
  }

  // A browser learns nothing of a refused upgrade, so each of these is accepted, told in a sentence, and closed with its code.
  test.each<[string, ErrorCode, () => Promise<string[]>]>([
    ["no ticket", "ticket_missing", async () => ["millrace.v1"]],
    ["garbage for a ticket", "ticket_invalid", async () => ["millrace.v1", "ticket.abc"]],
    [
      "a ticket signed by another key",
      "ticket_invalid",
      async () => ["millrace.v1", `ticket.${await forged(makeEdgeKeyPair().privateJwk, 0)}`],
    ],
    ["an expired ticket", "ticket_expired", async () => ["millrace.v1", `ticket.${await forged(stack.privateJwk, 120)}`]],
    ["an unknown version", "version_unsupported", async () => ["millrace.v9", `ticket.${await ticket()}`]],
  ])("%s is refused with %s", async (_, code, protocols) => {
    const end = await socket(await protocols());
    expect(end.last).toMatchObject([Op.ERROR, 0, code, expect.stringMatching(/\w+ \w+/), expect.any(Number)]);
    expect(end.code).toBe(closeCodeOf(code));
  });

  test.each([
    ["text", "frame_not_binary"],
    ["garbage", "frame_malformed"],
  ] as const)("%s is answered with %s", async (sent, code) => {
    const end = await socket(["millrace.v1", `ticket.${await ticket()}`], sent);
    expect(end.last).toMatchObject([Op.ERROR, 0, code, expect.any(String), expect.any(Number)]);
    expect(end.code).toBe(closeCodeOf(code));
  });

  // PROTOCOL.md: cut off before any handler runs, so without a code; the origin lives on.
  test("a frame of 10 MB ends as 1006, and nobody else notices", async () => {
    const end = await socket(["millrace.v1", `ticket.${await ticket()}`], "10 MB");
    expect(end.code).toBe(1006);
    await tab.page.getByRole("button", { name: "New chat" }).click();
    await tab.ask("Still there?");
    await expect.poll(async () => (await tab.prose.innerText()).length, { timeout: 10_000 }).toBeGreaterThan(5);
  });
});
