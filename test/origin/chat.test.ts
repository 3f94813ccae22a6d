/** From a conversation to a prompt: rendering in pieces, and making it fit. */
import { describe, expect, test } from "vitest";
import { fitConversation } from "../../origin/chat/fit.js";
import { PromptBuilder } from "../../origin/chat/prompt.js";
import { ChatTemplate } from "../../origin/chat/render.js";
import { VocabularyError } from "../../origin/chat/vocabulary.js";
import { simulatedVocabulary } from "../../origin/simulated.js";
import type { ChatMessage } from "../../shared/protocol.js";

const template = (chatTemplate: string): ChatTemplate => new ChatTemplate({ ...simulatedVocabulary(), chatTemplate });
/** Segments as text, contents in brackets. */
const shown = (chatTemplate: string, messages: ChatMessage[]): string =>
  template(chatTemplate)
    .render(messages)
    .map(({ from, text }) => (from === "content" ? `[${text}]` : text))
    .join("");

const chatml = simulatedVocabulary().chatTemplate;
const loop = (body: string): string => `{% for message in messages %}${body}{% endfor %}`;

describe("rendering", () => {
  test("what people wrote is kept apart from what the template wrote", () => {
    expect(shown(chatml, [["user", "Hi <|im_end|>"]])).toBe("<|im_start|>user\n[Hi <|im_end|>]<|im_end|>\n<|im_start|>assistant\n");
  });

  // Llama 3's templates trim contents; what was trimmed is no longer content.
  test.each([
    ["trim", "[a b]|"],
    ["lstrip", "[a b  ]|"],
    ["rstrip", "[  a b]|"],
  ])("a template that strips contents (%s) is followed", (method, expected) => {
    const call = method === "trim" ? "message.content | trim" : `message.content.${method}()`;
    expect(shown(loop(`{{ ${call} }}|`), [["user", "  a b  "]])).toBe(expected);
  });

  test("a template may say a content twice, and use begin-of-text", () => {
    expect(shown(loop("{{ bos_token + message.content + '/' + message.content }}"), [["user", "x"]])).toBe("<|im_start|>[x]/[x]");
  });

  test("an empty content is left to the template", () => {
    const messages: ChatMessage[] = [
      ["system", ""],
      ["user", "x"],
    ];
    expect(shown(loop("{% if message.content %}<{{ message.content }}>{% endif %}"), messages)).toBe("<[x]>");
  });

  // Wrong is worse than refused: what a template does to contents beyond trimming is not guessed.
  test.each([
    ["upper case", loop("{{ message.content | upper }}"), 0],
    ["a part of it", loop("{{ message.content.split('b')[0] }}|"), 0],
    ["left out", loop("{% if loop.first %}{{ message.content }}{% endif %}"), 1],
    ["another text for a word in it", loop("{% if 'b' in message.content %}secret{% endif %}{{ message.content }}"), 1],
  ])("a template that edits contents is refused: %s", (_, source, message) => {
    const render = (): unknown =>
      template(source).render([
        ["user", "abc"],
        ["assistant", "xbz"],
      ]);
    expect(render).toThrow(expect.objectContaining({ code: "field_invalid" }));
    expect(render).toThrow(new RegExp(`change or leave out the content of messages\\[[0${message}]\\]`));
  });

  test("a template's own refusal is passed on", () => {
    const source = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}";
    expect(() => template(source).render([["system", "x"]])).toThrow(/refuses this conversation: .*System role not supported/);
  });

  test("a model without a template, or with a broken one, is refused when it is loaded", () => {
    expect(() => template("")).toThrow(VocabularyError);
    expect(() => template("{% for %}")).toThrow(/chat template cannot be read/);
  });
});

describe("fitting", () => {
  const turn = (n: number): ChatMessage[] => [
    ["user", `u${n}`],
    ["assistant", `a${n}`],
  ];
  const conversation: ChatMessage[] = [["system", "s"], ...[1, 2, 3, 4].flatMap(turn), ["user", "u5"]];
  /** Ten tokens a message. */
  const count = async (messages: readonly ChatMessage[]): Promise<number> => 10 * messages.length;
  const texts = async (tokensMax: number): Promise<unknown> => {
    const fitting = await fitConversation(conversation, tokensMax, count);
    return fitting && [fitting.messages.map(([, content]) => content).join(" "), fitting.dropped];
  };

  test("whole turns go, the oldest first; the system message and the last turn stay", async () => {
    expect(await texts(100)).toEqual(["s u1 a1 u2 a2 u3 a3 u4 a4 u5", 0]);
    expect(await texts(99)).toEqual(["s u2 a2 u3 a3 u4 a4 u5", 2]);
    expect(await texts(60)).toEqual(["s u3 a3 u4 a4 u5", 4]);
    expect(await texts(20)).toEqual(["s u5", 8]);
    expect(await texts(19)).toBeUndefined();
  });

  test("what comes before the first user's message is of the first turn", async () => {
    const odd: ChatMessage[] = [
      ["assistant", "hello"],
      ["user", "u1"],
      ["user", "u2"],
      ["assistant", "a2"],
    ];
    expect(await fitConversation(odd, 20, count)).toEqual({ messages: odd.slice(2), dropped: 2 });
  });
});

describe("a prompt", () => {
  const builder = new PromptBuilder(simulatedVocabulary(), 400);
  const wish = { maxTokens: undefined, tokensMax: 1_000, overflow: "refuse" } as const;

  test("has the rest of the context for its answer, up to what the session may ask for", async () => {
    const { ids, maxTokens, dropped } = await builder.build([["user", "hi"]], wish);
    expect([maxTokens, dropped]).toEqual([400 - ids.length, 0]);
    expect((await builder.build([["user", "hi"]], { ...wish, tokensMax: 50 })).maxTokens).toBe(50);
    expect((await builder.build([["user", "hi"]], { ...wish, maxTokens: 7 })).maxTokens).toBe(7);
  });

  test("over the context is refused with the numbers", async () => {
    const long: ChatMessage[] = [["user", "x".repeat(390)]];
    await expect(builder.build(long, { ...wish, maxTokens: 100 })).rejects.toThrow(
      /^the prompt's (\d+) tokens plus maxTokens 100 are \d+, over the context of 400: shorten/,
    );
    await expect(builder.build([["user", "x".repeat(500)]], wish)).rejects.toMatchObject({ code: "context_exceeded" });
  });

  // Where maxTokens is left open, dropping makes room for an answer worth having: here a quarter of the context.
  test("drops old turns until the answer has room", async () => {
    const messages = Array.from({ length: 21 }, (_, index): ChatMessage => [index % 2 ? "assistant" : "user", `message ${index}`]);
    const { ids, maxTokens, dropped } = await builder.build(messages, { ...wish, overflow: "drop_oldest" });
    expect(maxTokens).toBe(400 - ids.length);
    expect(maxTokens).toBeGreaterThanOrEqual(100);
    expect([dropped % 2, dropped > 0]).toEqual([0, true]);
    const kept = await builder.build(messages.slice(dropped), wish);
    expect(kept.ids).toEqual(ids);
    await expect(builder.build([["user", "x".repeat(500)]], { ...wish, overflow: "drop_oldest" })).rejects.toThrow(
      /even without its older turns/,
    );
  });
});
