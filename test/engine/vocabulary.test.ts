/** What a model's tokenizer is made of, read without the model. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { Engine, EngineError } from "../../engine/binding/index.js";
import { temporaryFolder, tiny, tinyModel } from "./tinyModel.js";

const folder = temporaryFolder();
let path: string;
beforeAll(() => {
  path = folder.write("tiny.gguf", tinyModel());
});
afterAll(() => folder.remove());

test("a vocabulary alone is what the loaded model has", async () => {
  const engine = await Engine.load({ path, threads: 1, slots: 1, contextTokens: 1_024 });
  expect(await Engine.readVocabulary(path)).toEqual(engine.vocabulary());
  await engine.close();
});

// Nothing but the tokenizer is looked at: what computes the model need not be there.
test("a vocabulary is read of a model that this engine does not have", async () => {
  const other = folder.write("strange.gguf", tinyModel("falcon-h1"));
  expect((await Engine.readVocabulary(other)).tokens).toHaveLength(tiny.vocabulary);
});

test("a vocabulary is refused where there is none, with a sentence", async () => {
  await expect(Engine.readVocabulary("")).rejects.toThrow(/^path is empty/);
  const missing = Engine.readVocabulary(folder.path("none.gguf"));
  await expect(missing).rejects.toThrow(EngineError);
  await expect(missing).rejects.toThrow(/none\.gguf cannot be opened: No such file or directory$/);
});
