/** The servers under load, each a process of its own: an origin whose tokens say when they were due, an edge before it, and peers. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { importJWK, type JWK, SignJWT } from "jose";
import { fetchTicket } from "../../../client/ticket.js";
import { type AssertionClaims, assertionIssuer, assertionType } from "../../../shared/assertion.js";
import type { ClassName } from "../../../shared/classes.js";
import { limits } from "../../../shared/limits.js";
import { subprotocol, ticketPrefix } from "../../../shared/protocol.js";
import { type EdgeKind, type EdgeProcess, root, startEdge } from "../../../test/support/edgeProcess.js";
import { makeEdgeKeyPair } from "../../dev-keys.js";
import { ServerProcess } from "../../setup/child.js";
import { claimPort } from "../../setup/ports.js";
import type { Head } from "./loadClient.js";
import { running } from "./settings.js";

const readyMsMax = 60_000;
const stopMsMax = 10_000;
const logLinesMax = 4;
const originName = "origin-1";
const tenant = "bench";

export interface OriginPlan {
  tokensPerSecond: number;
  /** Answers at once. */
  slots: number;
  /** None: sockets go to the origin. */
  edge?: EdgeKind;
  /** Of Node.js, for the origin's process. */
  nodeFlags?: readonly string[];
}

/** An origin, and perhaps an edge. What goes around the edge brings an assertion signed here with the edge's key. */
export class Path {
  private constructor(
    private readonly folder: string,
    private readonly privateJwk: JWK,
    private readonly origin: ServerProcess,
    readonly originPort: number,
    private readonly edge: EdgeProcess | undefined,
    private readonly log: readonly string[],
  ) {}

  /** What both said last on stderr. */
  get said(): string {
    return this.log.join("; ");
  }

  /** @throws with the last lines of whoever was not ready in time; nothing is left running then. */
  static async start({ tokensPerSecond, slots, edge: kind, nodeFlags = [] }: OriginPlan): Promise<Path> {
    const log: string[] = [];
    const onErrorLine = (line: string): void => {
      log.push(line);
      if (log.length > logLinesMax) log.shift();
    };
    const folder = mkdtempSync(join(tmpdir(), "millrace-relay-"));
    const { privateJwk, publicJwk } = makeEdgeKeyPair();
    const edgeKey = join(folder, "edge-public.jwk.json");
    writeFileSync(edgeKey, JSON.stringify(publicJwk));
    const port = await claimPort(0, "the origin", "");
    const address = ["--host", "127.0.0.1", "--port", String(port), "--name", originName, "--edge-key", edgeKey, "--drain-ms", "0"];
    const simulated = ["--inference", "simulated", "--simulated-stamps", "1", "--simulated-rate", String(tokensPerSecond)];
    const sizes = ["--simulated-answer", String(running.answerTokensMax), "--ctx", String(running.contextTokens), "--slots", String(slots)];
    const origin = serverProcess(
      "the origin",
      [...nodeFlags, "--import", "tsx", "origin/main.ts", ...address, ...simulated, ...sizes],
      onErrorLine,
    );
    let edge: EdgeProcess | undefined;
    try {
      await origin.ready;
      const bindings = {
        ANONYMOUS_TENANT: tenant,
        EDGE_SIGNING_KEY: JSON.stringify(privateJwk),
        ORIGINS: JSON.stringify([{ name: originName, url: `http://127.0.0.1:${port}` }]),
      };
      if (kind) edge = await startEdge(kind, bindings, onErrorLine);
      return new Path(folder, privateJwk as JWK, origin, port, edge, log);
    } catch (error) {
      origin.kill();
      rmSync(folder, { recursive: true, force: true });
      throw error;
    }
  }

  get originPid(): number {
    return this.origin.pid;
  }

  get edgePid(): number | undefined {
    return this.edge?.pid;
  }

  /** Where clients connect. */
  get port(): number {
    return this.edge ? Number(new URL(this.edge.url).port) : this.originPort;
  }

  /** For so many upgrades, each of a user of its own; those for the origin are good for some seconds. */
  heads(count: number, service: ClassName = "chat"): Promise<Head[]> {
    return this.edge ? this.ticketHeads(count) : this.assertionHeads(count, service);
  }

  async assertionHeads(count: number, service: ClassName = "chat"): Promise<Head[]> {
    const key = await importJWK(this.privateJwk, "EdDSA");
    const iat = Math.floor(Date.now() / 1_000);
    return inTurns(count, async (index) => {
      const claims: AssertionClaims = {
        ...{ iss: assertionIssuer, aud: originName, sub: `user-${index}`, tenant, class: service, jti: crypto.randomUUID() },
        ...{ limits: { streamsMax: limits.streamsMax, tokensMax: running.maxTokens }, iat, exp: iat + limits.assertionLifeS },
      };
      const assertion = await new SignJWT({ ...claims }).setProtectedHeader({ alg: "EdDSA", typ: assertionType }).sign(key);
      return [`Authorization: Bearer ${assertion}`, `Sec-WebSocket-Protocol: ${subprotocol}`];
    });
  }

  async ticketHeads(count: number): Promise<Head[]> {
    const { url } = this.edge as EdgeProcess;
    return inTurns(count, async () => {
      const { ticket } = await fetchTicket(url);
      return [`Sec-WebSocket-Protocol: ${subprotocol}, ${ticketPrefix}${ticket}`];
    });
  }

  /** @param gently lets the origin end by itself, as writing a profile needs. */
  async stop(gently = false): Promise<void> {
    if (gently) await this.origin.stop();
    this.origin.kill();
    await Promise.all([this.origin.ended, this.edge?.stop()]);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** A peer of cpu.ts: a script in this folder that says on which port it listens. */
export class Peer {
  private constructor(
    private readonly server: ServerProcess,
    readonly port: number,
  ) {}

  /** @throws SetupError with its last lines. */
  static async start(script: string, args: readonly string[]): Promise<Peer> {
    const server = serverProcess(script, ["--import", "tsx", `scripts/bench/relay/${script}`, ...args], () => {}, /^ready on (\d+)$/);
    const [, port] = await server.ready;
    return new Peer(server, Number(port));
  }

  get pid(): number {
    return this.server.pid;
  }

  async stop(): Promise<void> {
    this.server.kill();
    await this.server.ended;
  }
}

function serverProcess(name: string, args: string[], onErrorLine: (line: string) => void, ready = /^origin \S+ ready on/): ServerProcess {
  return new ServerProcess({ name, args, cwd: root, env: process.env, ready, readyMsMax, stopMsMax, onErrorLine });
}

/** So many results, of which a few are in work at once. */
async function inTurns<Value>(count: number, make: (index: number) => Promise<Value>): Promise<Value[]> {
  const made: Value[] = new Array(count);
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < count) {
      const index = next++;
      made[index] = await make(index);
    }
  };
  await Promise.all(Array.from({ length: running.ticketsAtOnce }, worker));
  return made;
}
