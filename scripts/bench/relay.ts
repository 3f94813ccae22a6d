/**
 * `npm run bench -- relay`: what the edge adds between origin and client, and what a token weighs on the wire.
 *
 * A round trip is a START whose options the origin refuses: a frame of 30 bytes there, an ERROR of 71 back, answered within the
 * origin's message handler, without a model, a tokenizer or a timer. It goes alternately over a socket to the origin and over one through
 * the edge, from one process, so that each pair of times differs by the edge alone. Both ways count: what a token waits longer is half.
 */
import { readFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { importJWK, type JWK, SignJWT } from "jose";
import { WebSocket } from "ws";
import { fetchTicket } from "../../client/ticket.js";
import { type AssertionClaims, assertionIssuer, assertionType } from "../../shared/assertion.js";
import { decodeServerMessage, encode } from "../../shared/codec.js";
import { limits } from "../../shared/limits.js";
import { Op, subprotocol, ticketPrefix } from "../../shared/protocol.js";
import { type Stack, startStack } from "../../test/support/stack.js";
import { table } from "../eval/describe.js";
import { SetupError } from "../setup/exec.js";
import { quantile } from "./workload.js";

export interface RelayBenchOptions {
  quick: boolean;
  say: (line: string) => void;
}

interface Added {
  edge: string;
  /** Milliseconds a round trip. */
  directP50: number;
  directP99: number;
  throughP50: number;
  throughP99: number;
  /** Median of the pairs' differences. */
  addedP50: number;
  /** Of the pairs' differences. */
  addedP99: number;
}

const pairs = { quick: 500, full: 5_000 };
const warmUpPairs = 500;
const roundTripMsMax = 5_000;
const bars = { addedP50Ms: 0.6, bytesPerToken: 17 };

/** @returns all figures, for `--json`. */
export async function benchRelay({ quick, say }: RelayBenchOptions): Promise<object> {
  const load = loadavg()[0] as number;
  say(`machine: ${cpus()[0]?.model.trim()}, ${cpus().length} cores, load ${load.toFixed(2)} at the start`);
  const count = quick ? pairs.quick : pairs.full;
  const added: Added[] = [];
  for (const edge of ["workerd", "wrangler"] as const) {
    const stack = await startStack({ edge });
    try {
      added.push(await measure(edge, stack, count));
    } finally {
      await stack.stop();
    }
  }
  say(`\n${count} pairs of round trips, milliseconds`);
  const columns: (keyof Added)[] = ["directP50", "throughP50", "addedP50", "directP99", "throughP99", "addedP99"];
  const header = ["edge", "direct p50", "through p50", "added p50", "direct p99", "through p99", "added p99"];
  say(
    table(
      header,
      added.map((row) => [row.edge, ...columns.map((column) => (row[column] as number).toFixed(3))]),
    ),
  );
  say(`the bar: at most ${bars.addedP50Ms} ms added at p50, by workerd without wrangler's development proxy`);

  const bytesPerToken = wireBytesPerToken();
  say(
    `\n${bytesPerToken.toFixed(2)} bytes a token on the wire, WebSocket header and payload, one token a frame; the bar: at most ${bars.bytesPerToken}`,
  );
  return { load, pairs: count, added, bytesPerToken };
}

async function measure(edge: string, stack: Stack, count: number): Promise<Added> {
  const direct = await RoundTrips.open(`${stack.originUrl.replace("http", "ws")}/v1/stream`, [subprotocol], {
    authorization: `Bearer ${await assertion(stack)}`,
  });
  const { ticket } = await fetchTicket(stack.edgeUrl);
  const through = await RoundTrips.open(`${stack.edgeUrl.replace("http", "ws")}/v1/stream`, [subprotocol, `${ticketPrefix}${ticket}`], {});
  const times: { direct: number[]; through: number[] } = { direct: [], through: [] };
  for (let pair = 0; pair < warmUpPairs + count; pair++) {
    const order = pair % 2 === 0 ? ([direct, through] as const) : ([through, direct] as const);
    const [first, second] = [await order[0].next(), await order[1].next()];
    if (pair < warmUpPairs) continue;
    times.direct.push(pair % 2 === 0 ? first : second);
    times.through.push(pair % 2 === 0 ? second : first);
  }
  direct.close();
  through.close();
  const differences = times.through.map((ms, index) => ms - (times.direct[index] as number));
  return {
    edge,
    directP50: quantile(times.direct, 0.5),
    directP99: quantile(times.direct, 0.99),
    throughP50: quantile(times.through, 0.5),
    throughP99: quantile(times.through, 0.99),
    addedP50: quantile(differences, 0.5),
    addedP99: quantile(differences, 0.99),
  };
}

/** One socket, one question at a time. */
class RoundTrips {
  #stream = 0;
  #answered: (stream: number) => void = () => {};

  private constructor(private readonly socket: WebSocket) {
    socket.on("message", (data: Buffer) => {
      const message = decodeServerMessage(data);
      if (message?.[0] === Op.ERROR) this.#answered(message[1]);
    });
  }

  /** Settles once HELLO has come. */
  static open(url: string, subprotocols: string[], headers: Record<string, string>): Promise<RoundTrips> {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(url, subprotocols, { headers, perMessageDeflate: false, handshakeTimeout: limits.openMs });
      socket.once("error", reject);
      socket.once("close", (code) => reject(new SetupError(`${url} closed with ${code} before HELLO`)));
      socket.once("message", () => resolve(new RoundTrips(socket)));
    });
  }

  /** @returns milliseconds from the question to its answer. */
  async next(): Promise<number> {
    const stream = ++this.#stream;
    const question = encode([Op.START, stream, [["user", "Hello"]], { maxTokens: 0 }]);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const answer = new Promise<void>((resolve, reject) => {
      timer = setTimeout(() => reject(new SetupError(`no answer came within ${roundTripMsMax} ms`)), roundTripMsMax);
      this.#answered = (of) => (of === stream ? resolve() : reject(new SetupError(`stream ${of} was answered in place of ${stream}`)));
    });
    const started = performance.now();
    this.socket.send(question);
    await answer;
    const ms = performance.now() - started;
    clearTimeout(timer);
    return ms;
  }

  close(): void {
    this.socket.removeAllListeners("close").close();
  }
}

/** What the edge would say of a client, signed with the edge's key, for the socket that goes around it. */
async function assertion(stack: Stack): Promise<string> {
  const nowS = Math.floor(Date.now() / 1_000);
  const claims: AssertionClaims = {
    iss: assertionIssuer,
    aud: "origin-1",
    sub: "bench",
    tenant: "test",
    class: "chat",
    limits: { streamsMax: limits.streamsMax, tokensMax: 1_024 },
    iat: nowS,
    exp: nowS + limits.assertionLifeS,
    jti: crypto.randomUUID(),
  };
  const key = await importJWK(stack.privateJwk as JWK, "EdDSA");
  return new SignJWT({ ...claims }).setProtectedHeader({ alg: "EdDSA", typ: assertionType }).sign(key);
}

/** The mean over the fixed text of the protocol's own test: 1,000 tokens of English, as the model's tokenizer cuts them. */
function wireBytesPerToken(): number {
  const fixture = new URL("../../test/shared/fixtures/english-1000-tokens.txt", import.meta.url);
  const tokens = readFileSync(fixture, "utf8").split("|");
  const bytes = tokens.map((text, index) => {
    const payload = encode([Op.TOKENS, 1, index + 1, text, 0]).length;
    // RFC 6455, 5.2: from a server, without a mask.
    return payload + (payload < 126 ? 2 : payload < 65_536 ? 4 : 10);
  });
  return bytes.reduce((sum, count) => sum + count, 0) / tokens.length;
}
