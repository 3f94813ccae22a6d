/**
 * What is disturbed: two origins and a Worker, each a process, with a proxy before each origin. An origin has a standby that takes its
 * place, and its address, the moment it is gone: a restart without the time that a restart takes.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type EdgeProcess, root, startEdge } from "../../test/support/edgeProcess.js";
import { makeEdgeKeyPair } from "../dev-keys.js";
import { ServerProcess } from "../setup/child.js";
import { claimPort } from "../setup/ports.js";
import { ChaosProxy } from "./proxy.js";

const originReadyMsMax = 60_000;
const originStopMsMax = 10_000;

export interface ChaosStackOptions {
  /** The origins' flags beside address and key. */
  originArgs: readonly string[];
  /** How long a draining origin lets answers run. */
  drainMs: number;
  /** By which customers sign. */
  customerSecret: string;
}

interface Running {
  process: ServerProcess;
  port: number;
  epoch: string;
}

/** One address of ORIGINS, and who answers there. */
export class OriginPlace {
  proxy!: ChaosProxy;
  #current!: Running;
  #standby!: Promise<Running>;
  /** Connections go nowhere meanwhile. */
  isDown = false;

  constructor(private readonly launch: () => Promise<Running>) {}

  async open(): Promise<void> {
    this.#current = await this.launch();
    this.#standby = this.launch();
    this.proxy = await ChaosProxy.listen(() => (this.isDown ? 1 : this.#current.port), userOfUpgrade);
  }

  get port(): number {
    return this.#current.port;
  }

  /** Of the run that answers now. */
  get epoch(): string {
    return this.#current.epoch;
  }

  /** Dies without a word. @param downMs how long nobody answers after that. */
  async kill(downMs: number): Promise<void> {
    const dying = this.#current.process;
    this.isDown = true;
    dying.kill();
    await dying.ended;
    this.#current = await this.#standby;
    this.#standby = this.launch();
    if (downMs > 0) await new Promise((resolve) => setTimeout(resolve, downMs));
    this.isDown = false;
  }

  /** Is told to stop, hands off what it does not finish, and is followed by the standby. */
  async roll(): Promise<void> {
    await this.#current.process.stop();
    this.#current = await this.#standby;
    this.#standby = this.launch();
  }

  async close(): Promise<void> {
    for (const { process } of [this.#current, await this.#standby]) {
      process.kill();
      await process.ended;
    }
    await this.proxy.close();
  }
}

export class ChaosStack {
  readonly places: OriginPlace[] = [];
  readonly log: string[] = [];
  #edge!: EdgeProcess;
  #bindings: Record<string, string> = {};
  readonly #folder = mkdtempSync(join(tmpdir(), "millrace-chaos-"));

  static async start(options: ChaosStackOptions): Promise<ChaosStack> {
    const stack = new ChaosStack();
    const { privateJwk, publicJwk } = makeEdgeKeyPair();
    const edgeKey = join(stack.#folder, "edge-public.jwk.json");
    writeFileSync(edgeKey, JSON.stringify(publicJwk));
    for (const name of ["origin-1", "origin-2"]) {
      const place = new OriginPlace(() => launchOrigin(name, edgeKey, options, (line) => stack.#note(line)));
      stack.places.push(place);
    }
    await Promise.all(stack.places.map((place) => place.open()));
    const origins = stack.places.map(({ proxy }, index) => ({ name: `origin-${index + 1}`, url: `http://127.0.0.1:${proxy.port}` }));
    stack.#bindings = {
      EDGE_SIGNING_KEY: JSON.stringify(privateJwk),
      ORIGINS: JSON.stringify(origins),
      CUSTOMER_JWT_SECRET: options.customerSecret,
    };
    stack.#edge = await startEdge("workerd", stack.#bindings, (line) => stack.#note(line));
    return stack;
  }

  get edgePort(): number {
    return Number(new URL(this.#edge.url).port);
  }

  /** The Worker's process dies, and another takes its place. */
  async killEdge(): Promise<void> {
    process.kill(this.#edge.pid, "SIGKILL");
    const dead = this.#edge;
    this.#edge = await startEdge("workerd", this.#bindings, (line) => this.#note(line));
    await dead.stop();
  }

  async stop(): Promise<void> {
    await Promise.all(this.places.map((place) => place.close()));
    await this.#edge.stop();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #note(line: string): void {
    this.log.push(line);
    if (this.log.length > 200) this.log.shift();
  }
}

async function launchOrigin(
  name: string,
  edgeKey: string,
  { originArgs, drainMs }: ChaosStackOptions,
  onErrorLine: (line: string) => void,
): Promise<Running> {
  const port = await claimPort(0, "an origin", "");
  const address = ["--host", "127.0.0.1", "--port", String(port), "--name", name, "--edge-key", edgeKey, "--drain-ms", String(drainMs)];
  const launched = new ServerProcess({
    name,
    args: ["--import", "tsx", "origin/main.ts", ...address, ...originArgs],
    cwd: root,
    env: process.env,
    ready: /^origin \S+ ready on/,
    readyMsMax: originReadyMsMax,
    stopMsMax: originStopMsMax,
    onErrorLine,
  });
  await launched.ready;
  const { epoch } = (await (await fetch(`http://127.0.0.1:${port}/readyz`)).json()) as { epoch: string };
  return { process: launched, port, epoch };
}

/** The user that the edge's assertion names, which stands in the upgrade's first bytes. */
function userOfUpgrade(head: string): string | undefined {
  const payload = /authorization: Bearer [\w-]+\.([\w-]+)\./i.exec(head)?.[1];
  if (payload === undefined) return undefined;
  return (JSON.parse(Buffer.from(payload, "base64url").toString()) as { sub?: string }).sub;
}
