import { expect, test } from "vitest";
import { countJunit, countVitest, summary, type VitestReport } from "../../scripts/test.js";

const report = (...files: VitestReport["testResults"]): VitestReport => ({ testResults: files });
const file = (status: string, ...statuses: string[]) => ({
  name: "a.test.ts",
  status,
  assertionResults: statuses.map((each) => ({ status: each })),
});

test("the last line has passed and failed always, skipped where there are any", () => {
  expect(summary({ passed: 3, failed: 0, skipped: 0 })).toBe("3 passed, 0 failed");
  expect(summary({ passed: 3, failed: 1, skipped: 2 })).toBe("3 passed, 1 failed, 2 skipped");
});

test("vitest's tests are counted over all files", () => {
  const tests = report(file("passed", "passed", "passed", "pending"), file("failed", "failed", "passed", "todo"));
  expect(countVitest(tests, 1, () => {})).toEqual({ passed: 3, failed: 1, skipped: 2 });
});

// Neither shows in the counts of tests, and a run that hid them would look green.
test("a file that could not be loaded, and an error outside of all tests, are failures", () => {
  const said: string[] = [];
  const unloaded = report(file("passed", "passed"), { ...file("failed"), message: "no such module" });
  expect(countVitest(unloaded, 1, (line) => said.push(line))).toEqual({ passed: 1, failed: 1, skipped: 0 });
  expect(said).toEqual(["a.test.ts failed outside its tests: no such module"]);
  expect(countVitest(report(file("passed", "passed")), 1, () => {})).toEqual({ passed: 1, failed: 1, skipped: 0 });
});

test("CTest's report is counted, and a run that failed as a whole is a failure", () => {
  const xml =
    '<?xml version="1.0"?>\n<testsuite name="x"\n\ttests="7"\n\tfailures="2"\n\tdisabled="1"\n\tskipped="1"\n\thostname=""><testcase/></testsuite>';
  expect(countJunit(xml, 8)).toEqual({ passed: 3, failed: 2, skipped: 2 });
  expect(countJunit('<testsuite tests="4" failures="0" disabled="0" skipped="0">', 0)).toEqual({ passed: 4, failed: 0, skipped: 0 });
  expect(countJunit('<testsuite tests="4" failures="0" disabled="0" skipped="0">', 1)).toEqual({ passed: 4, failed: 1, skipped: 0 });
});
