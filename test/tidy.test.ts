/** The house's style, as a test. A rule that finds something gives `path:line: what is wrong; what to do`. */
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { errorsAgree, limitsAreUsed, opsAgree, specificationPath } from "./support/tidy/agreement.js";
import { file, type Rule, repositoryFiles } from "./support/tidy/files.js";
import { engineIncludes, importArrows, oneSocketFile } from "./support/tidy/imports.js";
import { fileSizes, lockHasNoAddresses, noAddresses, noSecrets } from "./support/tidy/repository.js";
import { bannedCalls, fileLengths, functionLengths, markers } from "./support/tidy/text.js";

const files = repositoryFiles(fileURLToPath(new URL("..", import.meta.url)));

const rules: [what: string, rule: Rule][] = [
  ["folders import only what the arrows allow", importArrows],
  ["one file imports uWebSockets.js", oneSocketFile],
  ["the engine includes only itself, and its scheduler neither threads nor clocks", engineIncludes],
  ["files stay under 400 lines", fileLengths],
  ["functions stay under 70 lines, kernels under 120", functionLengths],
  ["no marker is left over", markers],
  ["banned calls stay out", bannedCalls],
  ["no file in git is over 1 MiB", fileSizes],
  ["package-lock.json has no download addresses", lockHasNoAddresses],
  ["no host but the known ones and no developer's path is named", noAddresses],
  ["nothing looks like a secret", noSecrets],
  ["every limit bounds something", limitsAreUsed],
  ["PROTOCOL.md and protocol.ts have the same ops", opsAgree],
  ["PROTOCOL.md and errors.ts have the same codes", errorsAgree],
];

test.each(rules)("%s", (_what, rule) => {
  expect(rule(files)).toEqual([]);
});

test("the files of the repository were found", () => {
  expect(files.map(({ path }) => path)).toEqual(expect.arrayContaining(["package.json", "shared/limits.ts", specificationPath]));
});

/** A rule that finds nothing anywhere is no rule: each is shown a breach, and finds it at its line. */
describe("the rules find what they are for", () => {
  const finds = (rule: Rule, path: string, text: string): string => {
    const findings = rule([file(path, text)]);
    expect(findings.length, `${path}: ${text}`).toBeGreaterThan(0);
    return findings[0] as string;
  };

  test("imports across folders, however they are written", () => {
    expect(finds(importArrows, "shared/a.ts", '\nimport { b } from "../client/b.js";')).toMatch(
      /^shared\/a\.ts:[12]: imports client\/b\.js, but shared/,
    );
    finds(importArrows, "client/widget/a.ts", 'import {\n  b,\n  c,\n} from "../../origin/b.js";');
    finds(importArrows, "edge/a.ts", 'export * from "../origin/b.js";');
    finds(importArrows, "edge/a.ts", 'const a = await import("../scripts/b.js");');
    finds(importArrows, "origin/session.ts", 'import type { Engine } from "../engine/binding/index.js";');
    finds(importArrows, "engine/binding/a.ts", 'import "../../shared/limits.js";');
    finds(oneSocketFile, "test/a.ts", 'import uws from "uWebSockets.js";');
    const allowed = [
      file("origin/native.ts", 'import { Engine } from "../engine/binding/index.js";\nimport { limits } from "../shared/limits.js";'),
      file("edge/a.ts", 'import { connect } from "../client/index.js";\nimport { Hono } from "hono";'),
      file("test/a.ts", 'import { b } from "../origin/b.js";'),
    ];
    expect(importArrows(allowed)).toEqual([]);
  });

  test("includes of the engine", () => {
    finds(engineIncludes, "engine/src/a.cpp", '#include "../../shared/b.h"');
    finds(engineIncludes, "engine/src/schedule/a.cpp", "#include <chrono>");
    finds(engineIncludes, "engine/src/schedule/a.h", '#include "../base/clock.h"');
    expect(
      engineIncludes([file("engine/src/base/clock.h", ""), file("engine/src/a.cpp", '#include "base/clock.h"\n#include <thread>')]),
    ).toEqual([]);
  });

  test("lengths", () => {
    finds(fileLengths, "a.ts", "a\n".repeat(401));
    expect(fileLengths([file("a.ts", "a\n".repeat(400))])).toEqual([]);
    const body = "  step();\n".repeat(69);
    for (const head of [
      "export function long(): void {",
      "  async run(a: string): Promise<void> {",
      "void Engine::step() {",
      'test("long", () => {',
    ])
      finds(functionLengths, "a.ts", `${head}\n${body}${/^ */.exec(head)?.[0]}}\n`);
    expect(functionLengths([file("a.ts", `class A {\n${body}${body}}\n`), file("a.ts", `function a() {\n${body.slice(10)}}\n`)])).toEqual(
      [],
    );
  });

  test("words and calls", () => {
    finds(markers, "a.md", `a ${"TO"}${"DO"}: b`);
    finds(bannedCalls, "engine/src/a.cpp", "if (!ok) std::abort();");
    finds(bannedCalls, "engine/src/a.cpp", "exit(1);");
    finds(bannedCalls, "client/a.ts", `${"ev"}al(text)`);
    finds(bannedCalls, "client/a.ts", `element.inner${"HTML"} = text;`);
    finds(bannedCalls, "test/a.test.ts", `test.${"only"}("a", () => {});`);
    finds(bannedCalls, "edge/a.ts", `console.${"log"}(1);`);
    expect(bannedCalls([file("engine/src/a.cpp", "// never abort()\non_exit(1);"), file("origin/a.ts", "console.log(1);")])).toEqual([]);
  });

  test("what must not be in git", () => {
    expect(fileSizes([{ path: "a.bin", bytes: 1_048_577, text: "" }])).toHaveLength(1);
    finds(lockHasNoAddresses, "package-lock.json", '"resolved": "x"');
    finds(noAddresses, "a.md", "see https://packages.fast.dev/a");
    finds(noAddresses, "a.md", "see https://example.com.packages.dev/a");
    finds(noAddresses, "a.sh", "fetch HTTP://packages:8081/a");
    expect(noAddresses([file("a.ts", '"https://github.com/a", "http://127.0.0.1:80", "https://shop.test"')])).toEqual([]);
    finds(noAddresses, "a.ts", `read("/${"home"}/alice/model.gguf")`);
    finds(noSecrets, "a.env", `KEY='{"kty":"OKP","${"d"}":"${"A".repeat(43)}"}'`);
    finds(noSecrets, "a.ts", `const token = "hf_${"a".repeat(34)}";`);
    finds(noSecrets, "a.txt", `-----BEGIN ${"PRIVATE"} KEY-----`);
  });

  test("what is said twice and differs", () => {
    expect(limitsAreUsed([file("origin/a.ts", "limits.frameBytesMax")]).join()).toContain("frameDepthMax bounds nothing");
    expect(opsAgree([file(specificationPath, "| 9 | HELLO `[1, 0, info]` |")]).join()).toMatch(
      /HELLO is 9 in its first column.*HELLO is 9 here and 1/,
    );
    expect(opsAgree([file(specificationPath, "")]).join()).toContain("has no row for START (32)");
    expect(errorsAgree([file(specificationPath, "| `internal` | 501 | 4501 | later |")]).join()).toContain(
      "internal is 501 4501 later here",
    );
    expect(errorsAgree([file(specificationPath, "")]).join()).toContain("does not say overloaded");
  });
});
