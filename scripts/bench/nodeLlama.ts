/** node-llama-cpp, installed on demand into the ignored folder, without its packages for graphics cards. */
import { existsSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { SetupError } from "../setup/exec.js";
import { must, peersFolder } from "./peers.js";

const version = "3.22.1";
const folder = join(peersFolder, "node-llama-cpp");

export const nodeLlamaEntry = join(folder, "node_modules/node-llama-cpp/dist/index.js");
export const nodeLlamaName = `node-llama-cpp ${version}`;

/** @throws SetupError saying why it cannot be had. */
export async function installNodeLlama(say: (line: string) => void): Promise<void> {
  if (existsSync(nodeLlamaEntry)) return;
  if (process.platform !== "linux" || process.arch !== "x64")
    throw new SetupError(`its one binary package fetched here is for Linux on x64, and this is ${process.platform} on ${process.arch}`);
  say(`installing ${nodeLlamaName} in ${folder}`);
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, "package.json"), '{ "private": true, "type": "module" }\n');
  // The optional packages are binaries, 600 MB of them for CUDA; the one for this CPU is named by itself. No script of theirs runs.
  const packages = [`node-llama-cpp@${version}`, `@node-llama-cpp/linux-x64@${version}`];
  await must("npm", ["install", "--prefix", folder, "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", ...packages], folder);
}
