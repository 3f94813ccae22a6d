/** The engine's own benchmark programs, which are built when they are asked for. */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { SetupError } from "../setup/exec.js";

const build = fileURLToPath(new URL("../../engine/build", import.meta.url));

/** Builds the target where it is not built yet, and runs it. @returns its lines. @throws SetupError */
export function runEngineProgram(target: string, args: string[]): string[] {
  const built = spawnSync("cmake", ["--build", build, "--target", target], { encoding: "utf8" });
  if (built.status !== 0) throw new SetupError(`${target} could not be built; npm run build says more:\n${built.stdout}${built.stderr}`);
  const program = join(build, target);
  const ran = spawnSync(program, args, { encoding: "utf8", maxBuffer: 1 << 24 });
  if (ran.status !== 0) throw new SetupError(`${program} failed: ${ran.stderr}`);
  return ran.stdout.trim().split("\n");
}
