/** Bundles the page into dist/page, where wrangler takes it from. Opening it needs no build server. */
import { randomUUID } from "node:crypto";
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { build } from "esbuild";

/**
 * What has not changed is not written: wrangler watches the folder, and for each change restarts the edge under the pages that are open.
 * @param root the repository's folder. @returns the folder that holds the page.
 */
export async function buildPage(root: string): Promise<string> {
  const from = join(root, "client/widget");
  const to = join(root, "dist/page");
  await mkdir(to, { recursive: true });
  const common = { bundle: true, minify: true, sourcemap: "linked", target: "es2023", legalComments: "none", write: false } as const;
  const bundles = await Promise.all([
    build({
      ...common,
      entryPoints: [join(from, "main.ts")],
      outfile: join(to, "main.js"),
      format: "esm",
      // msgpackr's usual build tries `new Function`, which the page's Content Security Policy forbids and reports.
      alias: { msgpackr: "msgpackr/index-no-eval" },
    }),
    build({ ...common, entryPoints: [join(from, "theme.ts")], outfile: join(to, "theme.js"), format: "iife" }),
    build({ ...common, entryPoints: [join(from, "style.css")], outfile: join(to, "style.css") }),
  ]);
  const copied = [join(from, "index.html"), join(from, "icon.svg"), join(root, "edge/_headers")];
  await Promise.all([
    ...bundles.flatMap(({ outputFiles }) => outputFiles.map(({ path, contents }) => put(path, contents))),
    ...copied.map(async (path) => put(join(to, basename(path)), await readFile(path))),
  ]);
  return to;
}

/** The file has these bytes afterwards, and nobody ever sees a part of them. */
async function put(path: string, bytes: Uint8Array): Promise<void> {
  const present = await readFile(path).catch(() => undefined);
  if (present?.equals(bytes)) return;
  const partial = join(path, "../..", randomUUID());
  await writeFile(partial, bytes);
  await rename(partial, path);
}

if (process.argv[1] === import.meta.filename) {
  console.log(`the page is in ${await buildPage(join(import.meta.dirname, ".."))}`);
}
