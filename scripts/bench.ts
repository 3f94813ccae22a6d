/** `npm run bench -- engine` and `npm run bench -- relay`: the figures of docs/benchmarks.md, measured here and now. */
import { writeFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { EngineError } from "../engine/binding/index.js";
import { benchEngine } from "./bench/engine.js";
import { benchRelay } from "./bench/relay.js";
import { SetupError } from "./setup/exec.js";
import { resolveModel } from "./setup/model.js";
import { silent } from "./setup/progress.js";

const usage = `npm run bench -- engine [--model PATH] [--threads N] [--quick] [--json FILE]
npm run bench -- relay [--quick] [--json FILE]`;

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      model: { type: "string" },
      threads: { type: "string" },
      quick: { type: "boolean", default: false },
      json: { type: "string" },
    },
  });
  const [what, ...rest] = positionals;
  if (rest.length > 0 || (what !== "engine" && what !== "relay"))
    throw new SetupError(`say what to measure, engine or relay; ${JSON.stringify(positionals.join(" "))} is neither\n${usage}`);
  const threads = values.threads === undefined ? availableParallelism() : Number(values.threads);
  if (!Number.isInteger(threads) || threads < 1) throw new SetupError(`--threads is ${values.threads}, not an integer from 1`);
  const say = (line: string): void => console.log(line);
  const { quick } = values;
  const figures =
    what === "relay"
      ? await benchRelay({ quick, say })
      : await benchEngine({ model: await resolveModel(values.model, silent()), threads, quick, say });
  if (values.json !== undefined) await writeFile(values.json, `${JSON.stringify({ bench: what, quick, ...figures }, null, 2)}\n`);
}

/** What the user can put right is said in one sentence; a fault of ours shows where it happened. */
function isExpected(error: unknown): error is Error {
  if (error instanceof SetupError || error instanceof EngineError) return true;
  return error instanceof Error && String((error as NodeJS.ErrnoException).code).startsWith("ERR_PARSE_ARGS");
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href)
  await main().catch((error: unknown) => {
    console.error(isExpected(error) ? error.message : error);
    process.exitCode = 1;
  });
