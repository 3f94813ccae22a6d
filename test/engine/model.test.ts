/** The binding on the real model: what a person's answer rests on. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { Engine } from "../../engine/binding/index.js";
import { defaultModelPath } from "../../scripts/setup/model.js";
import { readGolden } from "./golden.js";
import { ask, request } from "./support.js";

const path = defaultModelPath();
const golden = readGolden();
const prompts = golden.map(({ tokens }) => tokens.subarray(0, 40));
const prompt = prompts[0] as Int32Array;
let engine: Engine;
let turnsWhileLoading = 0;

beforeAll(async () => {
  const timer = setInterval(() => turnsWhileLoading++, 1);
  engine = await Engine.load({ path, contextTokens: 1024, slots: 8 });
  clearInterval(timer);
}, 60_000);
afterAll(() => engine.close());

test("loading leaves the event loop free", () => {
  // A load that blocks allows one turn or none; this one takes hundreds of milliseconds elsewhere.
  expect(turnsWhileLoading).toBeGreaterThanOrEqual(5);
});

test("the model brings what a tokenizer and a chat are made of", () => {
  const vocabulary = engine.vocabulary();
  expect(vocabulary.tokens).toHaveLength(engine.info.vocabularySize);
  expect(vocabulary.types).toHaveLength(engine.info.vocabularySize);
  expect(vocabulary).toMatchObject({ kind: "gpt2", preTokenizer: "smollm" });
  expect(vocabulary.merges.length).toBeGreaterThan(40_000);
  expect(vocabulary.chatTemplate).toContain("<|im_start|>");
  expect(engine.info.stopTokens).toContain(vocabulary.tokens.indexOf("<|im_end|>"));
});

test("eight answers at once are each what they are alone", async () => {
  const requests = Array.from({ length: 8 }, (_, index) =>
    request(prompts[index % prompts.length] as Int32Array, 16, index % 2 ? { temperature: 0.8, topP: 0.9, seed: index } : {}),
  );
  const alone: string[] = [];
  for (const each of requests) {
    const answer = ask(engine, each);
    await answer.finished;
    alone.push(answer.text());
  }
  const together = requests.map((each) => ask(engine, each));
  await Promise.all(together.map(({ finished }) => finished));
  expect(together.map((answer) => answer.text())).toEqual(alone);
}, 60_000);

test("a stop string that spans tokens ends the answer before it", async () => {
  const chat = golden.find(({ name }) => name === "chat template")?.tokens;
  const plain = request(chat ?? [], 24);
  const whole = ask(engine, plain);
  await whole.finished;
  const texts = whole.events.flatMap((event) => (event.kind === "tokens" ? [event.text] : []));
  // The end of one token and the beginning of the next: no token has it whole.
  const at = texts.findIndex((text, index) => index > 2 && text.length > 1 && (texts[index + 1] ?? "").length > 1);
  expect(at).toBeGreaterThan(2);
  const stop = `${texts[at]?.slice(-1)}${texts[at + 1]?.slice(0, 2)}`;
  const stopped = ask(engine, { ...plain, stop: [stop] });
  expect(await stopped.finished).toMatchObject({ reason: "stop" });
  expect(stopped.text()).toBe(whole.text().slice(0, whole.text().indexOf(stop)));
});

test("an end-of-turn token ends the answer, and is counted but not shown", async () => {
  const end = engine.vocabulary().tokens.indexOf("<|im_end|>");
  const start = engine.vocabulary().tokens.indexOf("<|im_start|>");
  const word = (text: string): number => engine.vocabulary().tokens.indexOf(text);
  // The answer is as good as said, so that the model has little left but to end it.
  const question = ["user", "Ċ", "Say", "Ġhello", "."].map(word);
  const said = ["Hello", "!", "ĠHow", "Ġcan", "ĠI", "Ġhelp", "Ġyou"].map(word);
  const turn = [start, ...question, end, word("Ċ"), start, word("ass"), word("istant"), word("Ċ"), ...said];
  expect(turn).not.toContain(-1);
  const answer = ask(engine, request(turn, 40));
  const finished = await answer.finished;
  expect(finished.reason).toBe("stop");
  expect(finished.seq).toBe(answer.ids().length + 1);
  expect(answer.ids()).not.toContain(end);
  expect(answer.text()).not.toContain("<|im_end|>");
});

test("an evaluation gives the same bits in any chunks, and a greedy answer its likeliest tokens", async () => {
  const whole = await engine.evaluate(prompt, 256);
  for (const chunk of [1, 7, 32])
    expect(Buffer.compare(Buffer.from((await engine.evaluate(prompt, chunk)).buffer), Buffer.from(whole.buffer))).toBe(0);
  const answer = ask(engine, request(prompt, 1));
  await answer.finished;
  const last = whole.subarray(whole.length - engine.info.vocabularySize);
  expect(answer.ids()[0] ?? -1).toBe(last.indexOf(last.reduce((a, b) => Math.max(a, b))));
});
