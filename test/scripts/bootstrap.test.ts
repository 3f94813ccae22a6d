import { spawnSync } from "node:child_process";
import { chmodSync, cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

const root = fileURLToPath(new URL("../..", import.meta.url));
let clone: string;
let tools: string;

/** What a fresh clone has of the bootstrap, and an empty folder as its PATH, into which each test puts the tools it wants. */
beforeEach(() => {
  clone = mkdtempSync(join(tmpdir(), "millrace-clone-"));
  tools = join(clone, "tools");
  mkdirSync(tools);
  cpSync(join(root, "scripts"), join(clone, "scripts"), { recursive: true });
  for (const name of ["package.json", "package-lock.json"]) cpSync(join(root, name), join(clone, name));
});

afterEach(() => rmSync(clone, { recursive: true }));

function bootstrap(...args: string[]): { status: number | null; said: string } {
  const env = { PATH: tools, HOME: clone, MILLRACE_CACHE: join(clone, "cache") };
  const { status, stdout, stderr } = spawnSync(process.execPath, ["scripts/bootstrap.js", ...args], { cwd: clone, env, encoding: "utf8" });
  return { status, said: stdout + stderr };
}

/** A program that prints `says` and ends with `status`. */
function tool(name: string, says = "", status = 0): void {
  const path = join(tools, name);
  writeFileSync(path, `#!/bin/sh\necho '${says}'\nexit ${status}\n`);
  chmodSync(path, 0o755);
}

describe("tools", () => {
  test("all that is missing is named together, with one command that installs it", () => {
    const { status, said } = bootstrap("start");
    expect(status).toBe(1);
    for (const what of ["a C++20 compiler", "CMake 3.22 or newer", "make (or ninja)", "python3 with pip"]) expect(said).toContain(what);
    expect(said.match(/apt-get/g)).toHaveLength(1);
    expect(said).toContain("sudo apt-get install -y g++ cmake make python3 python3-pip\n");
  });

  test("what is there is not named, and what is too old is, with its version", () => {
    tool("c++");
    tool("make");
    tool("python3");
    tool("cmake", "cmake version 3.18.4");
    const { said } = bootstrap("start");
    expect(said).toContain("CMake 3.22 or newer (this is 3.18)");
    expect(said).toContain("sudo apt-get install -y cmake\n");
  });

  test("a compiler that cannot compile C++20 is named", () => {
    tool("c++", "", 1);
    tool("cmake", "cmake version 3.30.1");
    tool("ninja");
    tool("python3");
    expect(bootstrap("build").said).toMatch(/c\+\+ is here but cannot compile C\+\+20[\s\S]*install -y g\+\+\n/);
  });

  test("python3 without pip asks for pip alone, and only where the default model is wanted", () => {
    for (const name of ["c++", "make"]) tool(name);
    tool("cmake", "cmake version 4.0.0");
    writeFileSync(join(tools, "python3"), '#!/bin/sh\n[ "$2" != pip ]\n', { mode: 0o755 });
    expect(bootstrap("start").said).toContain("sudo apt-get install -y python3-pip\n");
    expect(bootstrap("start", "--model", "own.gguf").said).not.toContain("apt-get");
  });
});

describe("packages", () => {
  /** An npm that says what it was asked and leaves what npm would. */
  function fakeNpm(status = 0): void {
    writeFileSync(join(tools, "npm"), `#!/bin/sh\necho "npm asked to $*"\nexit ${status}\n`, { mode: 0o755 });
  }

  const installed = (change: (packages: Record<string, { version?: string }>) => void): void => {
    const { packages } = JSON.parse(readFileSync(join(clone, "package-lock.json"), "utf8"));
    delete packages[""];
    change(packages);
    mkdirSync(join(clone, "node_modules"));
    writeFileSync(join(clone, "node_modules/.package-lock.json"), JSON.stringify({ packages }));
  };

  const start = ["start", "--inference", "simulated"];

  test("are installed from the lock where there are none", () => {
    fakeNpm();
    expect(bootstrap(...start).said).toContain("npm asked to ci ");
  });

  test("are left alone where they are what the lock names, those for other platforms absent", () => {
    fakeNpm();
    installed((packages) => {
      for (const [path, entry] of Object.entries(packages)) if ("optional" in entry) delete packages[path];
    });
    expect(bootstrap(...start).said).not.toContain("npm asked");
  });

  test("are installed anew when one has another version, is missing, or is there beyond the lock", () => {
    fakeNpm();
    for (const change of [
      (packages: Record<string, object>) => Object.assign(packages["node_modules/hono"] as object, { version: "0.0.1" }),
      (packages: Record<string, object>) => delete packages["node_modules/hono"],
      (packages: Record<string, object>) => Object.assign(packages, { "node_modules/left-over": { version: "1.0.0" } }),
    ]) {
      installed(change);
      expect(bootstrap(...start).said).toContain("npm asked to ci ");
      rmSync(join(clone, "node_modules"), { recursive: true });
    }
  });

  test("that cannot be installed are a sentence, not a stack", () => {
    fakeNpm(3);
    const { status, said } = bootstrap(...start);
    expect(status).toBe(1);
    expect(said).toContain("npm ci failed (it ended with 3)");
    expect(said).not.toContain("    at ");
  });
});

test("an unknown command names those there are", () => {
  const { status, said } = bootstrap("serve");
  expect(status).toBe(1);
  expect(said).toBe('millrace has no command "serve"; there are start, test, chat, eval, bench, crowd, chaos, fuzz, build\n');
});

// The bootstrap must reach its version check on the Node that it refuses, so it may use nothing newer than that Node.
test("the first file has no syntax that an old Node cannot read", () => {
  const text = readFileSync(join(root, "scripts/bootstrap.js"), "utf8");
  expect(text).not.toMatch(/^\s*(await|import .* from)/m);
  expect(text).not.toMatch(/\?\.|\?\?|\|\|=/);
});
