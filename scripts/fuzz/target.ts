/** Two sessions of one user over one origin's answers, and what must hold of them whatever comes in. */
import { closeCodeOf, errorTable } from "../../shared/errors.js";
import { limits } from "../../shared/limits.js";
import { Op, type ServerMessage } from "../../shared/protocol.js";
import { type FakeClient, openFake } from "../../test/origin/fakeClient.js";
import { epoch, readAnswer, simulatedResponses } from "../../test/origin/support.js";
import type { Frames } from "./mutate.js";

const closeCodes = new Set((Object.keys(errorTable) as (keyof typeof errorTable)[]).map(closeCodeOf));
const lastOps: ReadonlySet<number> = new Set([Op.DONE, Op.ERROR, Op.MISROUTED, Op.EXPIRED, Op.GONE, Op.HANDOFF]);
const mayFollow: ReadonlySet<number> = new Set([Op.TRUNCATED, Op.DONE, Op.ERROR]);
const messagesMax = 20_000;
const responsesKnownMax = 8;

export class FuzzTarget {
  #nowMs = 0;
  readonly #parts = simulatedResponses({ tokensPerSecond: 20_000, answerTokens: 12, slots: 4 }, undefined, () => this.#nowMs);
  readonly #responses = ["none"];
  #next = 1_000;

  /** What frames may name. */
  get known(): { epoch: string; responses: readonly string[] } {
    return { epoch, responses: this.#responses };
  }

  /** Plays the frames to two sessions in turn. @returns what was wrong. */
  async run(frames: Frames): Promise<string | undefined> {
    const clients = [this.#open(), this.#open()] as const;
    for (const [index, bytes] of frames.entries()) {
      (clients[index % 3 === 2 ? 1 : 0] as FakeClient).sendRaw(bytes);
      this.#nowMs += 1;
      if (index % 4 === 3) await new Promise((resolve) => setImmediate(resolve));
    }
    this.#parts.responses.tick();
    const wrong = (await this.#answers()) ?? clients.map((client) => this.#check(client)).find((each) => each !== undefined);
    for (const client of clients) client.disconnect();
    // Whoever is left alone ends within its grace.
    this.#nowMs += 2 * limits.parkedMs + 700_000;
    this.#parts.responses.tick();
    return wrong;
  }

  describe(): string {
    const { running, waiting } = this.#parts.inference.load();
    return `${this.#parts.responses.count} answers live, ${running} running, ${waiting} waiting`;
  }

  close(): Promise<void> {
    return this.#parts.inference.close();
  }

  #open(): FakeClient {
    const client = openFake(this.#parts, { streamsMax: 8 }, () => this.#nowMs, { dead: "gone" });
    void client.closed.then(({ code }) => {
      if (!closeCodes.has(code)) throw new Error(`a session closed with ${code}, which is no error's`);
    });
    return client;
  }

  /** A stranger's question is answered, whatever others sent. */
  async #answers(): Promise<string | undefined> {
    const client = openFake(this.#parts, {}, undefined, { sub: `stranger ${this.#next++}` });
    client.send([Op.START, 1, [["user", "still there?"]], { maxTokens: 2 }]);
    try {
      await readAnswer(client, 1);
      return undefined;
    } catch (error) {
      return `nobody answers any more: ${String(error)}`;
    } finally {
      client.disconnect();
    }
  }

  #check({ received }: FakeClient): string | undefined {
    if (received.length > messagesMax) return `${received.length} messages came of a few frames`;
    const over = new Map<number, ServerMessage>();
    const seqs = new Map<number, number>();
    for (const message of received) {
      const [op, stream] = message;
      if (stream === 0) continue;
      if (over.has(stream) && !mayFollow.has(op)) return `op ${op} came after the last message of stream ${stream}`;
      if (op === Op.TOKENS) {
        if (message[2] <= (seqs.get(stream) ?? 0)) return `token ${message[2]} of stream ${stream} came twice`;
        seqs.set(stream, message[2]);
      }
      if (op === Op.STARTED || op === Op.RESUMED) this.#remember(message[2]);
      if (lastOps.has(op)) over.set(stream, message);
    }
    return undefined;
  }

  #remember(response: string): void {
    this.#responses.push(response);
    if (this.#responses.length > responsesKnownMax) this.#responses.splice(1, 1);
  }
}
