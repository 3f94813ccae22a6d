/**
 * The library for constrained output: xgrammar's C++ core (Apache-2.0), out of the source archive of its Python package, fetched through pip by
 * its name. It is not a dependency: `npm run build -- --formats` asks for it.
 */
import { existsSync } from "node:fs";
import { mkdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { runProgram, SetupError } from "./exec.js";
import { sha256OfFile } from "./hash.js";
import { cacheFolder } from "./model.js";

/** The last line of releases whose core needs nothing but two headers beside it, which the archive has too. */
export const xgrammar = {
  package: "xgrammar==0.1.29",
  name: "xgrammar-0.1.29",
  sha256: "cf195afa81b489eebf35d4c6f37f27136d05420739ab4a6f7f065c938d7e4baa",
} as const;

/** @returns the folder with its sources, fetched first where they are not there. @throws SetupError */
export async function fetchXgrammar(): Promise<string> {
  const folder = join(cacheFolder(), xgrammar.name);
  if (existsSync(folder)) return folder;
  const work = join(cacheFolder(), `partial.${process.pid}`);
  await mkdir(work, { recursive: true });
  try {
    const fetched = [
      "-m",
      "pip",
      "download",
      "--no-deps",
      "--no-binary=:all:",
      "--no-cache-dir",
      "--disable-pip-version-check",
      "--no-input",
    ];
    await must("python3", [...fetched, "--quiet", "--dest", work, xgrammar.package]);
    const archive = join(work, `${xgrammar.name}.tar.gz`);
    const hash = await sha256OfFile(archive);
    if (hash !== xgrammar.sha256)
      throw new SetupError(`The archive of ${xgrammar.package} has the SHA-256 ${hash}, not ${xgrammar.sha256}. Nothing was kept.`);
    const parts = ["LICENSE", "NOTICE", "cpp", "include", "3rdparty/picojson", "3rdparty/dlpack/include"];
    await must("tar", ["-xzf", archive, "-C", work, ...parts.map((part) => `${xgrammar.name}/${part}`)]);
    await rename(join(work, xgrammar.name), folder);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  return folder;
}

async function must(program: string, args: string[]): Promise<void> {
  const { status, tail } = await runProgram(program, args);
  if (status !== 0)
    throw new SetupError(
      `The sources for constrained output could not be fetched: ${program} ${args.slice(0, 3).join(" ")} failed.\n${tail}`,
    );
}
