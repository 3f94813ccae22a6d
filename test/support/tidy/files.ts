/** What the house's rules are checked against: every file that is in git or about to be. */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";

export interface RepositoryFile {
  /** From the repository's root, with `/`. */
  path: string;
  bytes: number;
  /** Empty for a file that is no text. */
  text: string;
}

/** A rule gives one sentence for each place that breaks it: `path:line: what is wrong; what to do`. */
export type Rule = (files: RepositoryFile[]) => string[];

/** Larger files are looked at by their size alone. */
const textBytesMax = 4_194_304;

export function repositoryFiles(root: string): RepositoryFile[] {
  const listed = execFileSync("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"], { cwd: root, encoding: "utf8" });
  const paths = [...new Set(listed.split("\0"))].filter((path) => path !== "" && existsSync(join(root, path)));
  return paths.map((path) => {
    const { size } = statSync(join(root, path));
    const text = size <= textBytesMax ? readFileSync(join(root, path), "utf8") : "";
    return { path, bytes: size, text: text.includes("\0") ? "" : text };
  });
}

/** A file for a rule's own test. */
export function file(path: string, text: string): RepositoryFile {
  return { path, bytes: Buffer.byteLength(text), text };
}

/** 1 for an offset on the first line. */
export function lineAt(text: string, offset: number): number {
  return text.slice(0, offset).split("\n").length;
}

/** One finding for each match, where the match begins. */
export function findAll({ path, text }: RepositoryFile, pattern: RegExp, say: (match: RegExpMatchArray) => string | undefined): string[] {
  const findings: string[] = [];
  for (const match of text.matchAll(pattern)) {
    const sentence = say(match);
    if (sentence !== undefined) findings.push(`${path}:${lineAt(text, match.index)}: ${sentence}`);
  }
  return findings;
}

export const isTypeScript = ({ path }: RepositoryFile): boolean => path.endsWith(".ts");
export const isScript = ({ path }: RepositoryFile): boolean => /\.(ts|js|mjs)$/.test(path);
export const isCpp = ({ path }: RepositoryFile): boolean => /\.(cpp|h|cu|cuh)$/.test(path);
/** Programs, as people write and read them. */
export const isCode = (each: RepositoryFile): boolean => isScript(each) || isCpp(each);
/** What npm writes, nobody reads. */
export const isLock = ({ path }: RepositoryFile): boolean => path === "package-lock.json";
/** The rules name what they forbid. */
export const isRule = ({ path }: RepositoryFile): boolean => path.startsWith("test/support/tidy/") || path === "test/tidy.test.ts";
