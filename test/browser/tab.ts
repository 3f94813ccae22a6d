/** One tab with the page, and everything it does that a person would not see: what its console says and which addresses it asks. */
import type { Browser, BrowserContextOptions, Page } from "playwright-core";

/** Longest wait for anything to show. */
export const showMsMax = 10_000;

export class Tab {
  /** Errors, warnings and Content Security Policy reports. */
  readonly complaints: string[] = [];
  /** Origins of every request, of WebSockets too. */
  readonly asked = new Set<string>();

  private constructor(
    readonly page: Page,
    readonly close: () => Promise<void>,
  ) {
    page.on("console", (message) => {
      if (message.type() === "error" || message.type() === "warning") this.complaints.push(message.text());
    });
    page.on("pageerror", (error) => this.complaints.push(String(error)));
    page.on("dialog", (dialog) => {
      this.complaints.push(`a dialog: ${dialog.message()}`);
      void dialog.dismiss();
    });
    page.on("request", (request) => this.asked.add(new URL(request.url()).host));
    page.on("websocket", (socket) => this.asked.add(new URL(socket.url()).host));
    page.context().on("page", (other) => this.complaints.push(`another page: ${other.url()}`));
  }

  /** A tab, with the page where a `url` is given. */
  static async open(browser: Browser, url?: string, options: BrowserContextOptions = {}): Promise<Tab> {
    const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
    context.setDefaultTimeout(showMsMax);
    const tab = new Tab(await context.newPage(), () => context.close());
    if (url !== undefined) await tab.visit(url);
    return tab;
  }

  /** Opens the page anew and waits for its connection; what was seen of earlier pages is forgotten. */
  async visit(url: string): Promise<void> {
    await this.page.goto("about:blank");
    this.complaints.length = 0;
    this.asked.clear();
    await this.page.goto(url);
    await this.connected();
  }

  async connected(): Promise<void> {
    await this.page.locator('#model[data-state="open"]').waitFor();
  }

  async ask(question: string): Promise<void> {
    await this.page.fill("#question", question);
    await this.page.press("#question", "Enter");
  }

  /** The newest answer's part of this class. */
  part(selector: string) {
    return this.page.locator(`#transcript > li:last-child > .answer ${selector}`);
  }

  get prose() {
    return this.part("> .prose");
  }

  /** Waits until the newest answer shows this text. */
  async shows(text: string): Promise<void> {
    await this.prose.filter({ hasText: text }).waitFor();
  }

  /** Waits until no answer is running. */
  async settled(): Promise<void> {
    await this.page.locator('#composer[data-state="idle"]').waitFor();
  }
}
