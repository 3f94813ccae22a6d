/**
 * The real path for tests and benchmarks: an origin and an edge, each a process of its own on ports that the system chose, with keys
 * made for the occasion. `npm start`'s own stack, with the development keys and the page, is scripts/start.ts.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Bindings } from "../../edge/bindings.js";
import { makeEdgeKeyPair } from "../../scripts/dev-keys.js";
import { ServerProcess } from "../../scripts/setup/child.js";
import { claimPort } from "../../scripts/setup/ports.js";
import { limits } from "../../shared/limits.js";
import { type EdgeKind, type EdgeProcess, root, startEdge } from "./edgeProcess.js";

const originReadyMsMax = 60_000;
const logLinesMax = 1_000;

export interface StackOptions {
  /** Default `simulated`. `native` needs the engine built and `--model PATH` among `originArgs`. */
  inference?: "native" | "simulated";
  /** Further flags of the origin. */
  originArgs?: string[];
  /** An origin that runs already, in place of one that is started. It cannot verify this edge's assertions unless given `publicJwk`. */
  originUrl?: string;
  /** The name by which the edge knows the origin; the origin's own is `origin-1`. */
  originName?: string;
  /** Default `workerd`. */
  edge?: EdgeKind;
  /** Bindings of the edge beside its key and origins. Default: anonymous tickets for the tenant `test`. */
  bindings?: Bindings;
}

export interface Stack {
  edgeUrl: string;
  originUrl: string;
  edgePid: number;
  /** Undefined where the origin was not started here. */
  originPid: number | undefined;
  /** The private key that the edge signs with, as a JWK: for tests that forge. */
  privateJwk: object;
  /** The last lines that origin and edge wrote to stderr. */
  log: string[];
  /** Ends the origin as a crash would: nothing is said to anybody. Settles when it has ended. */
  killOrigin(): Promise<void>;
  /** Starts it anew, at the same address. */
  restartOrigin(): Promise<void>;
  /** Ends both, and removes the keys. Safe to call twice. */
  stop(): Promise<void>;
}

/** Starts origin and edge and waits until both are ready. @throws with their last lines if one is not; nothing is left running then. */
export async function startStack(options: StackOptions = {}): Promise<Stack> {
  const folder = mkdtempSync(join(tmpdir(), "millrace-stack-"));
  const log: string[] = [];
  const onLine = (line: string): void => {
    log.push(line);
    if (log.length > logLinesMax) log.shift();
  };
  const { privateJwk, publicJwk } = makeEdgeKeyPair();
  const edgeKey = join(folder, "edge-public.jwk.json");
  writeFileSync(edgeKey, JSON.stringify(publicJwk));
  const originPort = options.originUrl ? 0 : await claimPort(0, "the origin", "");
  const originUrl = options.originUrl ?? `http://127.0.0.1:${originPort}`;
  const launch = (): ServerProcess => launchOrigin(originPort, edgeKey, options, onLine);
  let origin = options.originUrl ? undefined : launch();
  let edge: EdgeProcess | undefined;
  const stop = async (): Promise<void> => {
    origin?.kill();
    await Promise.all([origin?.ended, edge?.stop()]);
    rmSync(folder, { recursive: true, force: true });
  };
  try {
    const bindings: Bindings = {
      ...(options.bindings ?? { ANONYMOUS_TENANT: "test" }),
      EDGE_SIGNING_KEY: JSON.stringify(privateJwk),
      ORIGINS: JSON.stringify([{ name: options.originName ?? "origin-1", url: originUrl }]),
    };
    const starting = startEdge(options.edge ?? "workerd", bindings, onLine).then((started) => {
      edge = started;
      return started;
    });
    const [{ url, pid }] = await Promise.all([starting, origin?.ready]);
    return {
      edgeUrl: url,
      edgePid: pid,
      originUrl,
      privateJwk,
      log,
      get originPid() {
        return origin?.pid;
      },
      killOrigin: async () => {
        origin?.kill();
        await origin?.ended;
      },
      restartOrigin: async () => {
        if (!options.originUrl) origin = launch();
        await origin?.ready;
      },
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

function launchOrigin(port: number, edgeKey: string, options: StackOptions, onErrorLine: (line: string) => void): ServerProcess {
  const address = ["--host", "127.0.0.1", "--port", String(port), "--name", "origin-1", "--edge-key", edgeKey];
  const inference = ["--inference", options.inference ?? "simulated"];
  return new ServerProcess({
    name: "the origin",
    args: ["--import", "tsx", "origin/main.ts", ...address, ...inference, ...(options.originArgs ?? [])],
    cwd: root,
    env: process.env,
    ready: /^origin \S+ ready on/,
    readyMsMax: originReadyMsMax,
    stopMsMax: limits.drainMs,
    onErrorLine,
  });
}
