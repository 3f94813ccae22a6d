/** `npm run bench -- NAME`: the figures of docs/benchmarks.md, measured here and now. */
import { writeFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { benchEngine } from "./bench/engine.js";
import { benchInterference } from "./bench/interference.js";
import { benchPaging } from "./bench/paging.js";
import { benchPrefix } from "./bench/prefix.js";
import { benchRelay } from "./bench/relay.js";
import { benchSchedule } from "./bench/schedule.js";
import { runAsCommand } from "./setup/command.js";
import { SetupError } from "./setup/exec.js";
import { resolveModel } from "./setup/model.js";
import { silent } from "./setup/progress.js";

interface Options {
  /** What `--model` names. */
  model: string | undefined;
  threads: number;
  quick: boolean;
  say: (line: string) => void;
}

/** What can be measured; each resolves to its figures, for `--json`. */
const benches: Record<string, { flags: string; run: (options: Options) => Promise<object> }> = {
  engine: { flags: "[--model PATH] [--threads N]", run: benchEngine },
  interference: { flags: "[--model PATH] [--threads N]", run: async (options) => benchInterference(await withModel(options)) },
  paging: { flags: "", run: benchPaging },
  prefix: { flags: "[--model PATH] [--threads N]", run: async (options) => benchPrefix(await withModel(options)) },
  relay: { flags: "", run: benchRelay },
  schedule: { flags: "", run: benchSchedule },
};
const usage = Object.entries(benches)
  .map(([name, { flags }]) => `npm run bench -- ${[name, flags, "[--quick] [--json FILE]"].filter(Boolean).join(" ")}`)
  .join("\n");

async function withModel(options: Options): Promise<Options & { model: string }> {
  return { ...options, model: await resolveModel(options.model, silent()) };
}

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
  const [what = "", ...rest] = positionals;
  const bench = Object.hasOwn(benches, what) && rest.length === 0 ? benches[what] : undefined;
  if (!bench) {
    const names = Object.keys(benches).join(", ");
    throw new SetupError(`say what to measure, one of ${names}; ${JSON.stringify(positionals.join(" "))} is none of them\n${usage}`);
  }
  const threads = values.threads === undefined ? availableParallelism() : Number(values.threads);
  if (!Number.isInteger(threads) || threads < 1) throw new SetupError(`--threads is ${values.threads}, not an integer from 1`);
  const { model, quick } = values;
  const figures = await bench.run({ model, threads, quick, say: (line) => console.log(line) });
  if (values.json !== undefined) await writeFile(values.json, `${JSON.stringify({ bench: what, quick, ...figures }, null, 2)}\n`);
}

await runAsCommand(import.meta.url, main);
