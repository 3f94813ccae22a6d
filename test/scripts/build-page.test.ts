import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { buildPage } from "../../scripts/build-page.js";
import { root } from "../support/edgeProcess.js";

async function timesOf(folder: string): Promise<Record<string, number>> {
  const names = await readdir(folder);
  return Object.fromEntries(await Promise.all(names.map(async (name) => [name, (await stat(join(folder, name))).mtimeMs])));
}

// Several tests build the page, each before it opens it: those that have it open already must not notice.
test("a page that is built again stays as it lies", async () => {
  const page = await buildPage(root);
  const built = await timesOf(page);
  expect(Object.keys(built)).toEqual(expect.arrayContaining(["_headers", "index.html", "main.js", "style.css"]));
  await buildPage(root);
  expect(await timesOf(page)).toEqual(built);
});
