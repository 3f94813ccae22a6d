/** Constrained output with the default model: whatever it would have said, its answers are what the format says. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { Engine, EngineError, type Format, type Grammar } from "../../engine/binding/index.js";
import { PromptBuilder } from "../../origin/chat/prompt.js";
import { defaultModelPath } from "../../scripts/setup/model.js";
import { type Answer, ask, request } from "./support.js";

const engine = await Engine.load({ path: defaultModelPath(), contextTokens: 1_024, slots: 8 });
const withFormats = test.skipIf(!engine.info.hasFormats);
let prompts: PromptBuilder;
beforeAll(() => {
  prompts = new PromptBuilder(engine.vocabulary(), engine.info.contextTokens);
});
afterAll(() => engine.close());

const person = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 20 },
    age: { type: "integer", minimum: 1, maximum: 99 },
    likes: { type: "array", items: { type: "string", enum: ["bread", "water", "\u6c34\u8eca \u{1f30a}"] }, minItems: 1, maxItems: 3 },
  },
  required: ["name", "age", "likes"],
  additionalProperties: false,
};

async function start(question: string, grammar: Grammar, seed: number): Promise<Answer> {
  const { ids } = await prompts.build([["user", question]], { maxTokens: 200, tokensMax: 200, overflow: "refuse" });
  return ask(engine, request(ids, 200, { temperature: 1, seed, grammar }));
}

withFormats("a schema's answers parse against it, over several seeds, each the same beside the others as alone", async () => {
  const grammar = await engine.compile({ kind: "json_schema", text: JSON.stringify(person) });
  const seeds = [1, 2, 3, 4, 5, 6];
  const together = await Promise.all(seeds.map((seed) => start("Describe a miller as JSON.", grammar, seed)));
  for (const answer of together) {
    expect((await answer.finished).reason).toBe("stop");
    const parsed = JSON.parse(answer.text()) as { name: string; age: number; likes: string[] };
    expect(Object.keys(parsed)).toEqual(["name", "age", "likes"]);
    expect([...parsed.name].length).toBeLessThanOrEqual(20);
    expect(Number.isInteger(parsed.age) && parsed.age >= 1 && parsed.age <= 99, answer.text()).toBe(true);
    expect(parsed.likes.length >= 1 && parsed.likes.length <= 3).toBe(true);
    for (const each of parsed.likes) expect(person.properties.likes.items.enum).toContain(each);
  }
  expect(new Set(together.map((answer) => answer.text())).size).toBeGreaterThan(1);
  const alone = await start("Describe a miller as JSON.", grammar, 3);
  await alone.finished;
  expect(alone.ids()).toEqual(together[2]?.ids());
});

withFormats("a regular expression's and a grammar's answers are theirs, the end token where they may end and nowhere else", async () => {
  const date = /^(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]$/;
  const ofDate = await engine.compile({ kind: "regex", text: date.source.slice(1, -1) });
  const ofWords = await engine.compile({ kind: "grammar", text: 'root ::= word (", " word){2}\nword ::= "stone" | "wheel" | "r\u00edo"' });
  for (const seed of [1, 2, 3]) {
    const answer = await start("When was the mill built?", ofDate, seed);
    expect((await answer.finished).reason).toBe("stop");
    expect(answer.text()).toMatch(date);
    const words = await start("Name three things.", ofWords, seed);
    expect((await words.finished).reason).toBe("stop");
    expect(words.text()).toMatch(/^(stone|wheel|r\u00edo)(, (stone|wheel|r\u00edo)){2}$/);
  }
});

withFormats.each<[Format, RegExp]>([
  [{ kind: "json_schema", text: "{" }, /./],
  [{ kind: "regex", text: "(a" }, /./],
  [{ kind: "grammar", text: "root ::= nowhere" }, /nowhere/],
  [{ kind: "xml" as "regex", text: "a" }, /^the format's kind is "xml", not /],
])("%j is refused with a sentence", async (format, sentence) => {
  const refused = await engine.compile(format).catch((error: unknown) => error);
  expect(refused).toBeInstanceOf(EngineError);
  expect((refused as EngineError).message).toMatch(sentence);
});

test.skipIf(engine.info.hasFormats)("an engine built without them says how to build it with them", async () => {
  await expect(engine.compile({ kind: "regex", text: "a" })).rejects.toThrow(/npm run build -- --formats$/);
});
