/**
 * `npm test`, after set-up: format and lint, types, the engine's C++ tests, vitest. Its very last line is `N passed, N failed` over all
 * of them, and it ends with 0 only if something ran and nothing failed.
 */
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";

export interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

/** @param args filters for vitest, as `npm test -- shared` gives them. @param setupFailures what could not be built or fetched. */
export async function main(root: string, args: string[], setupFailures: Error[]): Promise<void> {
  const reports = mkdtempSync(join(tmpdir(), "millrace-test-"));
  const counts: Counts[] = setupFailures.map((failure) => {
    console.log(`set-up failed: ${failure.message}\n`);
    return { passed: 0, failed: 1, skipped: 0 };
  });
  try {
    if (args.length === 0) {
      counts.push(await checkLint(root), await checkTypes(root), await testEngine(root, reports, "plain"));
    }
    // What vitest runs waits a lot, for timers and for other processes: that is when sanitizers compile and run.
    const sanitized = args.length === 0 ? [testEngine(root, reports, "sanitized")] : [];
    counts.push(...(await Promise.all([testVitest(root, reports, args), ...sanitized])));
  } finally {
    rmSync(reports, { recursive: true, force: true });
  }
  const total = sum(counts);
  process.exitCode = total.failed > 0 || total.passed === 0 ? 1 : 0;
  console.log(summary(total));
}

export function summary({ passed, failed, skipped }: Counts): string {
  return `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
}

function sum(counts: Counts[]): Counts {
  return counts.reduce(
    (total, each) => ({ passed: total.passed + each.passed, failed: total.failed + each.failed, skipped: total.skipped + each.skipped }),
    { passed: 0, failed: 0, skipped: 0 },
  );
}

async function checkLint(root: string): Promise<Counts> {
  return asOne("format and lint", await run(root, process.execPath, ["node_modules/@biomejs/biome/bin/biome", "check", "."]));
}

async function checkTypes(root: string): Promise<Counts> {
  return asOne("types", await run(root, process.execPath, ["node_modules/typescript/bin/tsc", "--noEmit", "-p", "."]));
}

function asOne(what: string, status: number): Counts {
  console.log(`${what}: ${status === 0 ? "right" : `failed, see above (exit status ${status})`}`);
  return { passed: status === 0 ? 1 : 0, failed: status === 0 ? 0 : 1, skipped: 0 };
}

/** @param which `sanitized` are the tests of that name: minutes of compiling, which give way to all that runs beside them. */
async function testEngine(root: string, reports: string, which: "plain" | "sanitized"): Promise<Counts> {
  const build = join(root, "engine/build");
  if (!existsSync(join(build, "CTestTestfile.cmake"))) return { passed: 0, failed: 0, skipped: 0 };
  const report = join(reports, `ctest-${which}.xml`);
  const parallel = String(availableParallelism());
  const chosen = [which === "plain" ? "--exclude-regex" : "--tests-regex", "^sanitized: "];
  const args = [
    "--test-dir",
    build,
    "--output-junit",
    report,
    "--output-on-failure",
    "--no-tests=ignore",
    "--parallel",
    parallel,
    ...chosen,
  ];
  const status = which === "plain" ? await run(root, "ctest", args) : await run(root, "nice", ["-n", "19", "ctest", ...args]);
  return existsSync(report) ? countJunit(readFileSync(report, "utf8"), status) : asOne("the engine's tests", status || 1);
}

/** The totals stand in the report's first element. A run that failed as a whole counts as a failure even if none of its tests does. */
export function countJunit(xml: string, status: number): Counts {
  const suite = /<testsuite\b[^>]*>/.exec(xml)?.[0] ?? "";
  const attribute = (name: string): number => Number(new RegExp(`\\b${name}="(\\d+)"`).exec(suite)?.[1] ?? 0);
  const failed = attribute("failures") + attribute("errors");
  const skipped = attribute("skipped") + attribute("disabled");
  return { passed: attribute("tests") - failed - skipped, failed: Math.max(failed, status === 0 ? 0 : 1), skipped };
}

async function testVitest(root: string, reports: string, filters: string[]): Promise<Counts> {
  const report = join(reports, "vitest.json");
  const reporters = ["--reporter=default", "--reporter=json", `--outputFile.json=${report}`];
  const status = await run(root, process.execPath, ["node_modules/vitest/vitest.mjs", "run", ...reporters, ...filters]);
  return existsSync(report)
    ? countVitest(JSON.parse(readFileSync(report, "utf8")) as VitestReport, status, console.log)
    : asOne("vitest", status || 1);
}

/** The part of vitest's JSON report that is read. */
export interface VitestReport {
  testResults: { name: string; status: string; message?: string; assertionResults: { status: string }[] }[];
}

/** A file that could not even be loaded has no tests to count: it counts as one failure, and so does an error outside of all tests. */
export function countVitest(report: VitestReport, status: number, say: (line: string) => void): Counts {
  const counts: Counts = { passed: 0, failed: 0, skipped: 0 };
  for (const file of report.testResults) {
    for (const test of file.assertionResults) {
      if (test.status === "passed") counts.passed++;
      else if (test.status === "failed") counts.failed++;
      else counts.skipped++;
    }
    if (file.status === "failed" && !file.assertionResults.some((test) => test.status === "failed")) {
      say(`${file.name} failed outside its tests: ${file.message ?? ""}`);
      counts.failed++;
    }
  }
  return { ...counts, failed: Math.max(counts.failed, status === 0 ? 0 : 1) };
}

function run(root: string, program: string, args: string[]): Promise<number> {
  return new Promise((resolve) => {
    const child = spawn(program, args, { cwd: root, stdio: ["ignore", "inherit", "inherit"] });
    child.on("error", (error) => {
      console.log(error.message);
      resolve(127);
    });
    child.on("close", (status) => resolve(status ?? 1));
  });
}
