/** Prepares what a command needs, says how long each part took, and runs scripts/<command>.ts in this process. */
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { buildPage } from "../build-page.js";
import { buildEngine } from "./engine.js";
import { SetupError } from "./exec.js";
import { fetchXgrammar } from "./formats.js";
import { resolveModel } from "./model.js";
import { type Part, Progress, seconds, silent } from "./progress.js";
import { checkUwsBinary } from "./uws.js";

export interface Needs {
  engine: boolean;
  /** As --model has it; "default" is the default model, undefined none. */
  model: string | undefined;
  page: boolean;
}

export interface Command {
  root: string;
  command: string;
  args: string[];
  needs: Needs;
  /** What the packages took, 0 where they were there. */
  packagesMs: number;
}

/** Of the engine, beside the addon. */
interface Wanted {
  tests: boolean;
  formats: boolean;
  cuda: boolean;
}

/** A part that takes less than this is not worth a word. */
const wordyMs = 1_000;

export async function run({ root, command, args, needs, packagesMs }: Command): Promise<void> {
  // What the command line has wrong is said before minutes are spent.
  if (command === "start") await (await import("../start.js")).checkArguments(args);
  const { model } = needs;
  if (model !== undefined && model !== "default" && !model.startsWith("hf:")) await resolveModel(model, silent());
  if (command === "build") checkBuildArguments(args);
  const wanted = {
    tests: command === "test",
    formats: command === "build" && args.includes("--formats"),
    cuda: command === "build" && args.includes("--cuda"),
  };
  const failures = await prepare(root, needs, packagesMs, wanted);
  // A test run goes on to say what else fails, and counts these.
  if (failures.length > 0 && command !== "test") throw new SetupError(failures.map((failure) => failure.message).join("\n\n"));
  if (command === "build") return;
  if (command === "start") return (await import("../start.js")).main(args);
  if (command === "test") return (await import("../test.js")).main(root, args, failures);
  const script = join(root, `scripts/${command}.ts`);
  // The other scripts run as they do by themselves, with node --import tsx: by being the program.
  process.argv = [process.execPath, script, ...args];
  await import(pathToFileURL(script).href);
}

/** @returns what went wrong, so that parts which run side by side are all reported. */
async function prepare(root: string, needs: Needs, packagesMs: number, wanted: Wanted): Promise<Error[]> {
  const progress = new Progress();
  const took: [part: string, ms: number][] = packagesMs > 0 ? [["packages", packagesMs]] : [];
  const timed = async (part: string, work: () => Promise<unknown>): Promise<void> => {
    const started = performance.now();
    await work();
    took.push([part, performance.now() - started]);
  };
  const parts = [timed("uWebSockets", () => checkUwsBinary(join(root, "node_modules/uWebSockets.js")))];
  if (needs.engine) parts.push(timed("engine", () => reported(progress.begin("engine", "looking"), (part) => engine(root, part, wanted))));
  const { model } = needs;
  if (model !== undefined)
    parts.push(timed("model", () => reported(progress.begin("model", "looking"), (part) => resolveModel(model, part))));
  // The page is bundled anew each time: that takes less than finding out whether it must be.
  if (needs.page) parts.push(timed("page", () => buildPage(root)));
  const results = await Promise.allSettled(parts);
  if (took.some(([, ms]) => ms >= wordyMs)) process.stderr.write(`${took.map(([part, ms]) => `${part} ${seconds(ms)}`).join(", ")}\n`);
  return results.flatMap((result) => (result.status === "rejected" ? [asError(result.reason)] : []));
}

async function engine(root: string, part: Part, { tests, formats, cuda }: Wanted): Promise<void> {
  if (formats) part.at(0, "fetching xgrammar");
  const xgrammar = formats ? await fetchXgrammar() : undefined;
  part.end((await buildEngine(root, part, { tests, xgrammar, cuda })) ? "built" : undefined);
}

function checkBuildArguments(args: string[]): void {
  const strange = args.find((arg) => arg !== "--formats" && arg !== "--cuda");
  if (strange !== undefined)
    throw new SetupError(
      `npm run build takes, behind --: --formats (constrained output), --cuda (kernels for Hopper GPUs); not ${strange}`,
    );
}

/** A part that fails leaves the progress with that word; its reason is told at the end. */
async function reported(part: Part, work: (part: Part) => Promise<unknown>): Promise<void> {
  try {
    await work(part);
  } catch (error) {
    part.end("failed");
    throw error;
  }
}

function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason));
}
