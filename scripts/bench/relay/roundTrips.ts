/**
 * (e): what the edge adds to a round trip, alone and while a thousand other streams are busy on it. A round trip is a START whose options the
 * origin refuses: a frame of 30 bytes there, an ERROR of 71 back, answered within the origin's message handler, without a model, a tokenizer or
 * a timer. It goes alternately over a socket to the origin and over one through the edge, so that each pair of times differs by the edge alone.
 * Both ways count: what a token waits longer is half.
 */
import { WebSocket } from "ws";
import { decodeServerMessage, encode } from "../../../shared/codec.js";
import { limits } from "../../../shared/limits.js";
import { Op } from "../../../shared/protocol.js";
import type { EdgeKind } from "../../../test/support/edgeProcess.js";
import { table } from "../../eval/describe.js";
import { SetupError } from "../../setup/exec.js";
import { quantile } from "../workload.js";
import { damage, openStreams } from "./load.js";
import type { Head, LoadClient } from "./loadClient.js";
import { Path } from "./servers.js";
import { roundTrips } from "./settings.js";

/** Milliseconds a round trip. */
export interface RoundTripRow {
  edge: EdgeKind;
  /** Other streams, all through the edge. */
  busyStreams: number;
  directP50: number;
  throughP50: number;
  /** Of the pairs' differences. */
  addedP50: number;
  directP99: number;
  throughP99: number;
  addedP99: number;
}

export async function measureRoundTrips(edge: EdgeKind, busyStreams: number, pairs: number): Promise<RoundTripRow> {
  const path = await Path.start({ tokensPerSecond: roundTrips.tokensPerSecond, slots: busyStreams + 2, edge });
  let busy: LoadClient | undefined;
  try {
    if (busyStreams > 0) busy = await openStreams(path, busyStreams);
    const row = await measurePairs(path, pairs);
    const wrong = busy && damage(await busy.report(), busyStreams);
    if (wrong !== undefined) throw new SetupError(`${edge} with ${busyStreams} streams: ${wrong}`);
    return { edge, busyStreams, ...row };
  } finally {
    await busy?.quit();
    await path.stop();
  }
}

async function measurePairs(path: Path, pairs: number): Promise<Omit<RoundTripRow, "edge" | "busyStreams">> {
  const [[directHead = []], [throughHead = []]] = [await path.assertionHeads(1), await path.ticketHeads(1)];
  const direct = await RoundTrips.open(path.originPort, directHead);
  const through = await RoundTrips.open(path.port, throughHead);
  const times: { direct: number[]; through: number[] } = { direct: [], through: [] };
  for (let pair = 0; pair < roundTrips.warmUpPairs + pairs; pair++) {
    const order = pair % 2 === 0 ? ([direct, through] as const) : ([through, direct] as const);
    const [first, second] = [await order[0].next(), await order[1].next()];
    if (pair < roundTrips.warmUpPairs) continue;
    times.direct.push(pair % 2 === 0 ? first : second);
    times.through.push(pair % 2 === 0 ? second : first);
  }
  direct.close();
  through.close();
  const differences = times.through.map((ms, index) => ms - (times.direct[index] as number));
  return {
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
  static open(port: number, head: Head): Promise<RoundTrips> {
    const headers = Object.fromEntries(
      head.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 2)]),
    );
    const { "sec-websocket-protocol": protocols = "", ...others } = headers;
    return new Promise((resolve, reject) => {
      const options = { headers: others, perMessageDeflate: false, handshakeTimeout: limits.openMs };
      const socket = new WebSocket(`ws://127.0.0.1:${port}/v1/stream`, protocols.split(", "), options);
      socket.once("error", reject);
      socket.once("close", (code) => reject(new SetupError(`port ${port} closed with ${code} before HELLO`)));
      socket.once("message", () => resolve(new RoundTrips(socket)));
    });
  }

  /** @returns milliseconds from the question to its answer. */
  async next(): Promise<number> {
    const stream = ++this.#stream;
    const question = encode([Op.START, stream, [["user", "Hello"]], { maxTokens: 0 }]);
    const { answerMsMax } = roundTrips;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const answer = new Promise<void>((resolve, reject) => {
      timer = setTimeout(() => reject(new SetupError(`no answer came within ${answerMsMax} ms`)), answerMsMax);
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

export function describeRoundTrips(rows: readonly RoundTripRow[]): string {
  const columns = ["directP50", "throughP50", "addedP50", "directP99", "throughP99", "addedP99"] as const;
  const header = ["edge", "busy streams", "direct p50", "through p50", "added p50", "direct p99", "through p99", "added p99"];
  return table(
    header,
    rows.map((row) => [row.edge, String(row.busyStreams), ...columns.map((column) => row[column].toFixed(3))]),
  );
}
