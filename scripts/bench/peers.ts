/** Where peers are kept and how they get there. They are built or installed on demand into an ignored folder; none is a dependency. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { mkdir, rename, rm } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { runProgram, SetupError } from "../setup/exec.js";

export const peersFolder = fileURLToPath(new URL("../../.peers", import.meta.url));
/** The Python package in whose source archive the whole tree of llama.cpp lies. */
const sdist = { requirement: "llama-cpp-python==0.3.36", name: "llama_cpp_python-0.3.36" };
const llamaFolder = join(peersFolder, "llama.cpp");
const flags = [
  "-DCMAKE_BUILD_TYPE=Release",
  "-DGGML_NATIVE=ON",
  "-DLLAMA_CURL=OFF",
  "-DLLAMA_OPENSSL=OFF",
  "-DLLAMA_BUILD_TESTS=OFF",
].concat(["-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_WEBUI=OFF"]);
/** GCC before 13 lets the optimizer drop most of a tile configuration, so that a native build for a CPU with AMX dies at its first matrix. */
const withoutAmx = ["C", "CXX"].map((language) => `-DCMAKE_${language}_FLAGS=-mno-amx-tile -mno-amx-int8 -mno-amx-bf16`);
const gccWithAmx = 13;

export const llamaCpp = {
  folder: llamaFolder,
  version: `llama.cpp of ${sdist.requirement}, built natively with ${flags.join(" ")}`,
  bench: join(llamaFolder, "build/bin/llama-bench"),
  batchedBench: join(llamaFolder, "build/bin/llama-batched-bench"),
  quantize: join(llamaFolder, "build/bin/llama-quantize"),
  server: join(llamaFolder, "build/bin/llama-server"),
};

/** Builds llama.cpp unless it is there; that takes some ten minutes on two cores. @throws SetupError with the last lines of what failed. */
export async function buildLlamaCpp(say: (line: string) => void): Promise<void> {
  const programs = [llamaCpp.bench, llamaCpp.batchedBench, llamaCpp.quantize, llamaCpp.server];
  if (programs.every((program) => existsSync(program))) return;
  await mkdir(peersFolder, { recursive: true });
  const archive = join(peersFolder, `${sdist.name}.tar.gz`);
  if (!existsSync(join(llamaFolder, "CMakeLists.txt"))) {
    say(`fetching the sources of ${sdist.requirement}`);
    if (!existsSync(archive))
      await must("python3", ["-m", "pip", "download", "--no-deps", "--no-binary=:all:", "--dest", peersFolder, sdist.requirement]);
    await must("tar", ["-xzf", archive, "-C", peersFolder]);
    await rm(llamaFolder, { recursive: true, force: true });
    await rename(join(peersFolder, sdist.name, "vendor/llama.cpp"), llamaFolder);
  }
  say(`building llama.cpp in ${llamaFolder}, once, for some ten minutes`);
  const build = join(llamaFolder, "build");
  const own = (await breaksAmx()) ? withoutAmx : [];
  if (own.length > 0) say(`without AMX, which GCC before ${gccWithAmx} compiles wrongly`);
  await must("cmake", ["-S", llamaFolder, "-B", build, ...flags, ...own]);
  const targets = programs.map((program) => basename(program));
  await must("cmake", ["--build", build, `-j${availableParallelism()}`, "--target", ...targets]);
}

/** Whether the CPU has AMX and the compiler does not know how to configure it. */
async function breaksAmx(): Promise<boolean> {
  if (!/\bamx_tile\b/.test(readFileSync("/proc/cpuinfo", "utf8"))) return false;
  const macros = await must("c++", ["-dM", "-E", "-x", "c++", "/dev/null"]);
  const [, version] = /__GNUC__ (\d+)/.exec(macros) ?? [];
  return !macros.includes("__clang__") && Number(version) < gccWithAmx;
}

/** Compiles one of our own small programs unless it is newer than its source. @returns its path. */
export async function compile(source: string, compilerFlags: string[]): Promise<string> {
  const from = fileURLToPath(new URL(`${source}.cpp`, import.meta.url));
  const program = join(peersFolder, source);
  if (existsSync(program) && statSync(program).mtimeMs > statSync(from).mtimeMs) return program;
  await mkdir(peersFolder, { recursive: true });
  await must("c++", ["-O3", "-march=native", "-std=c++17", "-pthread", from, "-o", program, ...compilerFlags]);
  return program;
}

/** The flags that link a program with the peer's libraries. */
export const llamaFlags = [
  ...["include", "ggml/include"].map((folder) => `-I${join(llamaFolder, folder)}`),
  ...[`-L${join(llamaFolder, "build/bin")}`, "-lllama", "-lggml", "-lggml-base", `-Wl,-rpath,${join(llamaFolder, "build/bin")}`],
];

/** Runs a program and gives its standard output. @throws SetupError with its last lines where it fails. */
export async function must(program: string, args: string[], cwd?: string): Promise<string> {
  const lines: string[] = [];
  const { status, tail } = await runProgram(program, args, { ...(cwd ? { cwd } : {}), onLine: (line) => lines.push(line) });
  if (status !== 0) throw new SetupError(`${program} ${args.slice(0, 6).join(" ")} failed:\n${tail}`);
  return lines.join("\n");
}
