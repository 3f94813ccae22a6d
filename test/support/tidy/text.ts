/** What code may look like: lengths, words and calls that stay out. */
import { findAll, isCode, isCpp, isLock, isRule, isScript, type Rule } from "./files.js";

const fileLinesMax = 400;
const functionLinesMax = 70;
/** Kernels are long where they are unrolled by hand. */
const kernelLinesMax = 120;

export const fileLengths: Rule = (files) =>
  files.filter(isCode).flatMap(({ path, text }) => {
    const lines = text.replace(/\n$/, "").split("\n").length;
    return lines > fileLinesMax
      ? [`${path}:${lines}: has ${lines} lines, over ${fileLinesMax}; it wants to be two ideas: cut it into two files`]
      : [];
  });

/** A line that opens a function in code as our formatters write it; what is nested in braces on the same line does not count. */
const opensFunction =
  /^(?!\s*(?:if|for|while|switch|else|do|try|catch|return|namespace|class|struct|enum|interface|type|describe)\b).*(?:\)|\bconst|\bnoexcept|\boverride|=>|\): [^={]+)\s*\{$/;
/** A suite is a list of tests, each of which is measured by itself. */
const holdsTests = /^\s+(?:test|it|describe)(?:\.\w+)*\(/m;

/** By indentation: a function ends at the first later line that closes a brace in the column where it began. */
export const functionLengths: Rule = (files) =>
  files.filter(isCode).flatMap(({ path, text }) => {
    const max = /^engine\/src\/(cpu|cuda)\//.test(path) ? kernelLinesMax : functionLinesMax;
    const lines = text.split("\n");
    return lines.flatMap((line, index) => {
      if (!opensFunction.test(line)) return [];
      const close = `${/^\s*/.exec(line)?.[0]}}`;
      const end = lines.findIndex((other, at) => at > index && other.startsWith(close));
      const length = end - index + 1;
      if (end < 0 || length <= max) return [];
      if (path.startsWith("test/") && holdsTests.test(lines.slice(index + 1, end).join("\n"))) return [];
      return [`${path}:${index + 1}: a function of ${length} lines, over ${max}; give its parts names of their own`];
    });
  });

export const markers: Rule = (files) =>
  files
    .filter((file) => !isLock(file) && !isRule(file))
    .flatMap((file) =>
      findAll(file, /\b(TODO|FIXME|XXX|HACK)\b/g, ([word]) => `${word} is left over; do it now, or open an issue and delete the marker`),
    );

interface Ban {
  where: (path: string) => boolean;
  pattern: RegExp;
  sentence: string;
}

/** The one module that turns an answer into elements, through a sanitizer. */
const sanitizer = "client/widget/markdown.ts";
const inEngine = (path: string): boolean => /^engine\/(src|include|binding)\/.*\.(cpp|h|cu|cuh)$/.test(path);
const inScript = (path: string): boolean => /\.(ts|js|mjs)$/.test(path);

const bans: Ban[] = [
  {
    where: inEngine,
    pattern: /\b(?:std::)?(abort|exit|_exit|_Exit|quick_exit|terminate)\s*\(/g,
    sentence: "ends the whole process; return a Status, which the caller can report",
  },
  {
    where: inScript,
    pattern: /(?<![.\w])eval\(|\bnew Function\(/g,
    sentence: "runs text as code, which the page's policy forbids; write the code",
  },
  {
    where: (path) => inScript(path) && path !== sanitizer,
    pattern: /\.(innerHTML|outerHTML)\s*\+?=(?!=)|\binsertAdjacentHTML\(|\bdocument\.write\(/g,
    sentence: `makes elements of text; only ${sanitizer} may, behind its sanitizer: set textContent, or go through it`,
  },
  {
    where: (path) => path.startsWith("test/") && inScript(path),
    pattern: /\b(?:test|it|describe|suite)(?:\.\w+)*\.only\(/g,
    sentence: "leaves out every other test; remove .only",
  },
  {
    where: (path) => /^(shared|client|edge)\/.*\.ts$/.test(path),
    pattern: /\bconsole\.(log|debug|info)\(/g,
    sentence: "writes to somebody else's console; remove it, or hand what happened to the caller",
  },
];

export const bannedCalls: Rule = (files) =>
  files
    .filter((file) => !isRule(file) && (isScript(file) || isCpp(file)))
    .flatMap((file) =>
      bans
        .filter((ban) => ban.where(file.path))
        .flatMap((ban) =>
          findAll(file, ban.pattern, (match) =>
            isComment(file.text, match.index ?? 0) ? undefined : `${match[0].trim()} ${ban.sentence}`,
          ),
        ),
    );

/** Whether the place is behind `//` on its line, or on a line of a block comment. */
function isComment(text: string, offset: number): boolean {
  const line = text.slice(text.lastIndexOf("\n", offset) + 1, offset);
  return /^\s*\*|^\s*\/\*|(^|\s)\/\//.test(line);
}
