/** Where one thing is said twice, both say the same: PROTOCOL.md's tables and the code, limits and their use. */
import { errorTable } from "../../../shared/errors.js";
import { limits } from "../../../shared/limits.js";
import { Op } from "../../../shared/protocol.js";
import { isTypeScript, lineAt, type RepositoryFile, type Rule } from "./files.js";

export const specificationPath = "shared/PROTOCOL.md";

/** Codes that only the SDK says stand in a sentence, not in the table. */
const sdkSentence = /The SDK adds ([^.]*?), which no frame carries/;

export const limitsAreUsed: Rule = (files) => {
  const users = files.filter((file) => isTypeScript(file) && !file.path.startsWith("test/") && file.path !== "shared/limits.ts");
  const source = files.find(({ path }) => path === "shared/limits.ts")?.text ?? "";
  return Object.keys(limits)
    .filter((name) => !users.some(({ text }) => new RegExp(`\\blimits\\.${name}\\b`).test(text) || destructures(text, name)))
    .map(
      (name) =>
        `shared/limits.ts:${lineAt(source, source.indexOf(`${name}:`))}: ${name} bounds nothing; use it where it should hold, or delete it`,
    );
};

/** `const { name } = limits`. */
function destructures(text: string, name: string): boolean {
  return new RegExp(`\\{[^}]*\\b${name}\\b[^}]*\\}\\s*=\\s*limits\\b`).test(text);
}

export const opsAgree: Rule = (files) => {
  const specification = specificationOf(files);
  if (!specification) return [];
  const findings: string[] = [];
  const seen = new Map<string, number>();
  for (const match of specification.text.matchAll(/^\| (\d+) \| ([A-Z]+) `\[(\d+), /gm)) {
    const [, number, name, inShape] = match as unknown as [string, string, string, string];
    const at = `${specificationPath}:${lineAt(specification.text, match.index)}`;
    seen.set(name, Number(number));
    if (number !== inShape)
      findings.push(`${at}: ${name} is ${number} in its first column and ${inShape} in its shape; make them one number`);
    const coded = (Op as Record<string, number>)[name];
    if (coded !== Number(number))
      findings.push(`${at}: ${name} is ${number} here and ${coded ?? "missing"} in protocol.ts; change the two in one commit`);
  }
  for (const [name, number] of Object.entries(Op))
    if (!seen.has(name)) findings.push(`${specificationPath}:1: has no row for ${name} (${number}); specify it`);
  return [...findings, ...keptRoom(specification)];
};

/** The numbers kept for later must be free. */
function keptRoom({ text }: RepositoryFile): string[] {
  const from = text.indexOf("## Room that is kept");
  if (from < 0) return [];
  const taken = new Set<number>(Object.values(Op));
  return [...text.slice(from).matchAll(/`([A-Z]+)` (\d+)/g)]
    .filter(([, , number]) => taken.has(Number(number)))
    .map(
      ([, name, number]) =>
        `${specificationPath}:${lineAt(text, from)}: ${number}, kept for ${name}, is taken by a message; choose another`,
    );
}

export const errorsAgree: Rule = (files) => {
  const specification = specificationOf(files);
  if (!specification) return [];
  const { text } = specification;
  const findings: string[] = [];
  const seen = new Set<string>();
  for (const match of text.matchAll(/^\| `(\w+)` \| (\d+) \| (\d+) \| (\w+) \|/gm)) {
    const [, code, status, close, retry] = match as unknown as [string, string, string, string, string];
    seen.add(code);
    const row = (errorTable as Record<string, { status: number; retry: string }>)[code];
    const coded = row ? `${row.status} ${4000 + row.status} ${row.retry}` : "missing";
    const said = `${status} ${close} ${retry}`;
    if (coded !== said)
      findings.push(
        `${specificationPath}:${lineAt(text, match.index)}: ${code} is ${said} here and ${coded} in errors.ts; change the two in one commit`,
      );
  }
  for (const [, code] of sdkSentence.exec(text)?.[1]?.matchAll(/`(\w+)`/g) ?? []) seen.add(code as string);
  for (const code of Object.keys(errorTable))
    if (!seen.has(code)) findings.push(`${specificationPath}:1: does not say ${code}, which errors.ts has; add its row`);
  return findings;
};

function specificationOf(files: RepositoryFile[]): RepositoryFile | undefined {
  return files.find(({ path }) => path === specificationPath);
}
