/** The whole path on this machine: page, keys, origin and edge, until it is stopped. Also for tests and the terminal's chat. */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { limits } from "../shared/limits.js";
import { buildPage } from "./build-page.js";
import { ensureDevKeys } from "./dev-keys.js";
import { ServerProcess } from "./setup/child.js";
import { SetupError } from "./setup/exec.js";
import { resolveModel } from "./setup/model.js";
import { claimPort } from "./setup/ports.js";
import { silent } from "./setup/progress.js";
import { quietWrangler } from "./setup/wrangler.js";

const projectRoot = fileURLToPath(new URL("..", import.meta.url));
/** Loading a model from a slow disk, or the first start of workerd, takes a while. */
const originReadyMsMax = 120_000;
const edgeReadyMsMax = 60_000;
/** Beyond its own deadline for running answers, the origin gets this long to end. */
const drainMarginMs = 5_000;
const edgeStopMsMax = 5_000;
const parentCheckEveryMs = 500;

export interface StackOptions {
  /** The edge's port; 0 takes one that is free. */
  port?: number;
  originPort?: number;
  /** A path, `hf:OWNER/REPO/FILE`, or "default". */
  model?: string;
  inference?: "native" | "simulated";
  /** Handed to the origin as they are, which checks them. */
  threads?: string;
  ctx?: string;
  kvMemory?: string;
  slots?: string;
  kvType?: string;
  kernels?: string;
  precision?: string;
  deterministic?: string;
  classes?: string;
  /** The page was bundled and the model fetched just now. */
  prepared?: boolean;
  /** Takes what origin and edge write to stderr, a line each. Default: our own stderr. */
  onLine?: (line: string) => void;
}

export interface Stack {
  /** Where the page is, without a slash at the end. */
  edgeUrl: string;
  originUrl: string;
  originPid: number;
  /** What the origin runs, in its own words: `native, SmolLM2 135M Instruct, ...`. */
  engine: string;
  /** Settles when origin or edge ends without having been asked, with a sentence on it. */
  broken: Promise<string>;
  /** Lets running answers finish, then ends both. Safe to call twice. */
  stop(): Promise<void>;
  /** Ends both at once. */
  kill(): void;
}

/** Starts origin and edge and waits until both are ready. @throws SetupError; nothing is left running then. */
export async function startStack(options: StackOptions = {}): Promise<Stack> {
  const root = projectRoot;
  const [port, originPort] = await claimPorts(options);
  if (!options.prepared) await buildPage(root);
  const keys = ensureDevKeys(root);
  const onLine = options.onLine ?? ((line: string) => process.stderr.write(`${line}\n`));
  const origin = startOrigin(root, originPort, ["--edge-key", keys.edgePublicJwk, ...(await originArgs(options))], onLine);
  const edge = startEdge(root, port, originPort, keys.edgeEnv, onLine);
  const both = [origin, edge];
  let asked: Promise<void> | undefined;
  const stop = (): Promise<void> => {
    // The origin first: the edge carries what it still has to say.
    asked ??= origin.stop().then(() => edge.stop());
    return asked;
  };
  try {
    const [ready] = await Promise.all([origin.ready, edge.ready]);
    const broken = Promise.race(
      both.map(async (server) => {
        const how = await server.ended;
        return asked ? new Promise<string>(() => {}) : `${server.name} ${how}`;
      }),
    );
    const kill = (): void => {
      asked ??= Promise.resolve();
      for (const server of both) server.kill();
    };
    const originUrl = `http://127.0.0.1:${originPort}`;
    return { edgeUrl: `http://127.0.0.1:${port}`, originUrl, originPid: origin.pid, engine: ready[1] ?? "", broken, stop, kill };
  } catch (error) {
    for (const server of both) server.kill();
    await Promise.all(both.map((server) => server.ended));
    throw error;
  }
}

function claimPorts({ port = 8787, originPort = 9101 }: StackOptions): Promise<[edge: number, origin: number]> {
  return Promise.all([claimPort(port, "the edge", "--port"), claimPort(originPort, "the origin", "--origin-port")]);
}

async function originArgs(options: StackOptions): Promise<string[]> {
  const args: string[] = [];
  const add = (flag: string, value: string | undefined): void => {
    if (value !== undefined) args.push(flag, value);
  };
  const { inference = process.env.MILLRACE_INFERENCE, model = process.env.MILLRACE_MODEL } = options;
  add("--inference", inference);
  if (inference !== "simulated") {
    add("--model", await resolveModel(model, options.prepared ? silent() : undefined));
  }
  add("--threads", options.threads);
  add("--ctx", options.ctx);
  add("--kv-memory", options.kvMemory);
  add("--slots", options.slots);
  add("--kv-type", options.kvType);
  add("--kernels", options.kernels);
  add("--precision", options.precision);
  add("--deterministic", options.deterministic);
  add("--classes", options.classes);
  return args;
}

function startOrigin(root: string, port: number, args: string[], onErrorLine: (line: string) => void): ServerProcess {
  const fixed = ["--host", "127.0.0.1", "--port", String(port), "--name", "origin-1"];
  return new ServerProcess({
    name: "the origin",
    args: ["--import", "tsx", "origin/main.ts", ...fixed, ...args],
    cwd: root,
    env: process.env,
    ready: /^origin \S+ ready on \S+ \((.*)\)/,
    readyMsMax: originReadyMsMax,
    stopMsMax: limits.drainMs + drainMarginMs,
    onErrorLine,
  });
}

function startEdge(root: string, port: number, originPort: number, edgeEnv: string, onErrorLine: (line: string) => void): ServerProcess {
  // A later file overrides an earlier one. Stacks on other ports run side by side, so none rewrites the file that all of them read.
  const origins = join(root, `.dev/origins-${originPort}.env`);
  writeFileSync(origins, `ORIGINS='${JSON.stringify([{ name: "origin-1", url: `http://127.0.0.1:${originPort}` }])}'\n`);
  const flags = ["--ip", "127.0.0.1", "--port", String(port), "--inspector-port", "0", "--show-interactive-dev-session=false"];
  const edge = new ServerProcess({
    name: "the edge",
    args: ["node_modules/wrangler/bin/wrangler.js", "dev", ...flags, "--env-file", edgeEnv, "--env-file", origins],
    cwd: root,
    env: { ...process.env, ...quietWrangler(root) },
    ready: /Ready on (http:\S+)/,
    readyMsMax: edgeReadyMsMax,
    stopMsMax: edgeStopMsMax,
    onErrorLine,
  });
  void edge.ended.then(() => rmSync(origins, { force: true }));
  return edge;
}

const flags = {
  port: { type: "string" },
  "origin-port": { type: "string" },
  model: { type: "string" },
  inference: { type: "string" },
  threads: { type: "string" },
  ctx: { type: "string" },
  "kv-memory": { type: "string" },
  slots: { type: "string" },
  "kv-type": { type: "string" },
  kernels: { type: "string" },
  precision: { type: "string" },
  deterministic: { type: "string" },
  classes: { type: "string" },
} as const;

/** @throws SetupError naming the flag that is unknown or wrong. */
export function parseStartFlags(args: string[]): StackOptions {
  let values: Partial<Record<keyof typeof flags, string>>;
  try {
    values = parseArgs({ args, options: flags, strict: true, allowPositionals: false }).values;
  } catch (error) {
    const known = Object.keys(flags).map((name) => `--${name}`);
    throw new SetupError(`${error instanceof Error ? error.message : error}\nnpm start takes, behind --: ${known.join(" ")}`);
  }
  const { inference } = values;
  if (inference !== undefined && inference !== "native" && inference !== "simulated")
    throw new SetupError(`--inference ${inference} is neither native nor simulated`);
  const options: Record<string, unknown> = { ...values, inference, kvMemory: values["kv-memory"], kvType: values["kv-type"] };
  options.port = portOf("--port", values.port);
  options.originPort = portOf("--origin-port", values["origin-port"]);
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as StackOptions;
}

function portOf(flag: string, value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  const port = Number(value);
  if (!Number.isInteger(port) || port < 0 || port > 65_535) throw new SetupError(`${flag} ${value} is not a port: give 0 to 65535`);
  return port;
}

/** @throws SetupError for a flag that is wrong or a port that is taken. */
export async function checkArguments(args: string[]): Promise<void> {
  await claimPorts(parseStartFlags(args));
}

/** A signal to npm ends npm and the shell between, and never arrives here; that the parent is another process now shows it. */
function whenNpmEnds(act: () => void): void {
  if (process.env.npm_lifecycle_event === undefined) return;
  const parent = process.ppid;
  setInterval(() => process.ppid !== parent && act(), parentCheckEveryMs).unref();
}

/** `npm start`: runs until Ctrl-C, SIGTERM, or until a server ends by itself. */
export async function main(args: string[]): Promise<void> {
  const options = { ...parseStartFlags(args), prepared: true };
  const stopping = new Promise<string>((resolve) => {
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => resolve(signal));
    whenNpmEnds(() => resolve("npm's end"));
  });
  const stack = await Promise.race([startStack(options), stopping]);
  if (typeof stack === "string") return process.exit(0); // whose exit handler ends what was starting
  const warning = options.inference === "simulated" ? ["", "  The engine is simulated: no model answers."] : [];
  process.stdout.write(
    ["", `  Millrace   ${stack.edgeUrl}`, `  engine     ${stack.engine}`, ...warning, "", "  Ctrl-C stops it.", "", ""].join("\n"),
  );
  const broken = await Promise.race([stack.broken, stopping.then(() => undefined)]);
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => stack.kill()); // the second time, at once
  if (broken === undefined) process.stderr.write("stopping; running answers may finish (Ctrl-C again ends them)\n");
  await stack.stop();
  if (broken !== undefined) throw new SetupError(`${broken}, so everything was stopped. What it said last stands above.`);
  process.exit(0);
}
