/**
 * What can be done before packages exist: look for tools, install the locked packages. Then TypeScript takes over, in this process.
 * Plain JavaScript, no dependency.
 */
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { installPackages } from "./packages.js";
import { refuseWithoutTools } from "./tools.js";

const root = fileURLToPath(new URL("../../", import.meta.url));
const commands = ["start", "test", "chat", "eval", "bench", "crowd", "chaos", "fuzz", "build"];

export class SetupError extends Error {
  /** The message says all there is to say: no stack trace is shown. */
  expected = true;
}

/** Runs one of package.json's commands. `args` are what stood behind `--`. */
export async function first(command, args) {
  if (!commands.includes(command))
    throw new SetupError(`millrace has no command ${JSON.stringify(command ?? "")}; there are ${commands.join(", ")}`);
  const needs = needsOf(command, args);
  refuseWithoutTools(root, needs);
  const packagesMs = installPackages(root);
  const { register } = await import("tsx/esm/api");
  register();
  const { run } = await import(pathToFileURL(join(root, "scripts/setup/run.ts")).href);
  await run({ root, command, args, needs, packagesMs });
}

/** What a command works with. The simulated engine needs neither the native one nor a model; a model of one's own needs no default. */
function needsOf(command, args) {
  // An edge that runs elsewhere has all of it.
  if (command === "chat" && flagOf(args, "--edge") !== undefined) return { engine: false, model: undefined, page: false };
  const model = flagOf(args, "--model") ?? process.env.MILLRACE_MODEL ?? "";
  const simulated = (flagOf(args, "--inference") ?? process.env.MILLRACE_INFERENCE) === "simulated";
  return {
    engine: !simulated,
    model: simulated || command === "build" ? undefined : model === "" ? "default" : model,
    page: !["eval", "crowd", "chaos", "fuzz"].includes(command),
  };
}

/** `--name value` or `--name=value`. */
function flagOf(args, name) {
  const at = args.findIndex((arg) => arg === name || arg.startsWith(`${name}=`));
  if (at < 0) return undefined;
  return args[at] === name ? args[at + 1] : args[at].slice(name.length + 1);
}
