/** Configures and builds the native engine into engine/build with CMake; what has not changed is not built again. */
import { spawnSync } from "node:child_process";
import { createWriteStream, existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { runProgram, SetupError } from "./exec.js";
import type { Part } from "./progress.js";

/** What the build leaves for Node. */
export const addonPath = (root: string): string => join(root, "engine/build/millrace.node");

export interface EngineParts {
  /** The addon's tests too. Default true. */
  tests?: boolean;
  /** The library's sources, to build constrained output in; the build keeps it. */
  xgrammar?: string | undefined;
  /** Kernels for Hopper GPUs, which the build keeps too. Default: where this machine has a driver of one, and nvcc. */
  cuda?: boolean;
}

/** @returns whether anything was compiled or linked. @throws SetupError with the compiler's last lines. */
export async function buildEngine(root: string, part: Part, { tests = true, xgrammar, cuda }: EngineParts = {}): Promise<boolean> {
  const source = join(root, "engine");
  const build = join(root, "engine/build");
  if (!existsSync(join(source, "CMakeLists.txt")))
    throw new SetupError(`${source} has no CMakeLists.txt: the checkout is not whole; clone it again`);
  if (belongsElsewhere(build, source)) rmSync(build, { recursive: true });
  mkdirSync(build, { recursive: true });
  const logPath = join(build, "build.log");
  const log = createWriteStream(logPath);
  let built = false;
  const step = async (args: string[], what: string): Promise<void> => {
    if (what === "configuring") part.at(0, what);
    const onLine = (line: string): void => {
      log.write(`${line}\n`);
      const done = progressOf(line);
      if (done === undefined) return;
      built ||= /Building|Linking/.test(line);
      // Looking whether there is anything to build is nothing to tell.
      if (built) part.at(done, "compiling");
    };
    const { status, tail } = await runProgram("cmake", args, { cwd: root, onLine });
    if (status !== 0)
      throw new SetupError(`The engine could not be built (${what} failed). Its last lines, all of them in ${logPath}:\n${tail}`);
  };
  try {
    const isNew = !existsSync(join(build, "build.ninja")) && !existsSync(join(build, "Makefile"));
    if (cuda && nvcc() === undefined)
      throw new SetupError("kernels for GPUs are compiled by CUDA 13's nvcc, which is neither on the PATH nor in /usr/local/cuda/bin");
    const wantsCuda = cuda || (isNew && hasDriver() && nvcc() !== undefined);
    if (isNew || xgrammar || wantsCuda) {
      const generator = isNew && spawnSync("ninja", ["--version"], { stdio: "ignore" }).status === 0 ? ["-G", "Ninja"] : [];
      const formats = xgrammar ? [`-DMILLRACE_XGRAMMAR=${xgrammar}`] : [];
      const kernels = wantsCuda ? ["-DMILLRACE_CUDA=ON", `-DCMAKE_CUDA_COMPILER=${nvcc()}`] : [];
      await step(["-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release", ...generator, ...formats, ...kernels], "configuring");
    }
    // A bare --parallel lets make start everything at once, more than the memory of a small machine holds.
    const target = tests ? [] : ["--target", "millrace"];
    await step(["--build", build, "--parallel", String(availableParallelism()), ...target], "building");
  } finally {
    await new Promise<void>((resolve) => log.end(resolve));
  }
  if (!existsSync(addonPath(root))) throw new SetupError(`The build ended well but left no ${addonPath(root)}; see ${logPath}`);
  return built;
}

const hasDriver = (): boolean => existsSync("/dev/nvidiactl");

function nvcc(): string | undefined {
  return ["nvcc", "/usr/local/cuda/bin/nvcc"].find((path) => spawnSync(path, ["--version"], { stdio: "ignore" }).status === 0);
}

/** A build folder that came along with a copied checkout names its old place, and CMake refuses it. */
function belongsElsewhere(build: string, source: string): boolean {
  const cache = join(build, "CMakeCache.txt");
  if (!existsSync(cache)) return false;
  const home = /^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$/m.exec(readFileSync(cache, "utf8"))?.[1];
  return home !== undefined && home !== source;
}

/** How far the line says the build is, 0 to 1: Ninja writes `[12/27]`, make `[ 45%]`. */
export function progressOf(line: string): number | undefined {
  const ninja = /^\[(\d+)\/(\d+)\]/.exec(line);
  if (ninja) return Number(ninja[1]) / Number(ninja[2]);
  const make = /^\[\s*(\d+)%\]/.exec(line);
  return make ? Number(make[1]) / 100 : undefined;
}
