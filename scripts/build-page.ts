/** Bundles the page into dist/page, where wrangler takes it from. Opening it needs no build server. */
import { copyFile, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { build } from "esbuild";

/** @param root the repository's folder. @returns the folder that holds the page. */
export async function buildPage(root: string): Promise<string> {
  const from = join(root, "client/widget");
  const to = join(root, "dist/page");
  await mkdir(to, { recursive: true });
  const common = { bundle: true, minify: true, sourcemap: "linked", target: "es2023", legalComments: "none" } as const;
  await Promise.all([
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
    ...["index.html", "icon.svg"].map((name) => copyFile(join(from, name), join(to, name))),
    copyFile(join(root, "edge/_headers"), join(to, "_headers")),
  ]);
  return to;
}

if (process.argv[1] === import.meta.filename) {
  console.log(`the page is in ${await buildPage(join(import.meta.dirname, ".."))}`);
}
