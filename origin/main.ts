/** Starts one origin from flags and environment. Wiring only: what it wires stands in origin.ts. */
import { type Config, readConfig, usage } from "./config.js";
import { loadNative } from "./native.js";
import { Origin, type OriginOptions } from "./origin.js";
import { loadSimulated } from "./simulated.js";

const log = (line: string): void => console.error(line);

async function main(): Promise<void> {
  if (process.argv.includes("--help")) return void process.stdout.write(usage);
  const config = readConfig(process.argv.slice(2), process.env);
  const origin = await Origin.listen({ ...config, load: loader(config), log });
  for (const signal of ["SIGTERM", "SIGINT"] as const)
    process.once(signal, () => {
      log(`${signal}: draining, for at most ${config.drainMs} ms`);
      origin.drain().then(() => process.exit(0), fail);
    });
  const { kind, model } = await origin.load();
  console.log(`origin ${config.name} ready on http://${config.host}:${origin.port} (${kind}, ${model.name}, ${model.runsOn})`);
}

function loader(config: Config): OriginOptions["load"] {
  return config.inference === "simulated" ? () => loadSimulated(config, log) : () => loadNative(config, log);
}

function fail(error: unknown): void {
  log(error instanceof Error ? `${error.name}: ${error.message}` : String(error));
  process.exit(1);
}

main().catch(fail);
