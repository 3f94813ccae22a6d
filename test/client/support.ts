/** What the tests of links and answers share: answers that can be served from any token on, links to a scripted edge, and fake sockets. */
import { WebSocket } from "ws";
import type { Asked, Home } from "../../client/attach.js";
import type { Connection, StreamOwner } from "../../client/connection.js";
import { Link, type LinkOptions } from "../../client/link.js";
import { type Kept, type Reading, Response } from "../../client/response.js";
import type { Leave } from "../../client/tether.js";
import { Digest } from "../../shared/digest.js";
import {
  type ClientMessage,
  type Done,
  type FinishReason,
  Op,
  type Resume,
  type ServerMessage,
  type StartOptions,
} from "../../shared/protocol.js";
import { idOf, type Peer, type Script, ScriptedEdge, timings } from "../support/scriptedEdge.js";

export const question = [{ role: "user", content: "Why is the sky blue?" }] as const;
export const all = Number.MAX_SAFE_INTEGER;

/** An answer as an origin has it: it may be sent from any token on, in frames of any size. */
export class ScriptedAnswer {
  constructor(
    readonly texts: readonly string[],
    readonly id = "response-1",
  ) {}

  get text(): string {
    return this.texts.join("");
  }

  /** One TOKENS with everything after token `from`, up to token `to`. */
  tokens(peer: Peer, stream: number, from: number, to: number): void {
    const ids = Array.from({ length: to - from }, (_, at) => idOf(from + at + 1));
    peer.send([Op.TOKENS, stream, to, this.texts.slice(from, to).join(""), 0, ids]);
  }

  started(peer: Peer, stream: number): void {
    peer.started(stream, 0, this.id);
  }

  resumed(peer: Peer, stream: number): void {
    peer.send([Op.RESUMED, stream, this.id, this.texts.length, 12, 0]);
  }

  done(peer: Peer, stream: number, reason: FinishReason = "stop"): void {
    peer.done(stream, this.texts, reason);
  }

  /** Answers a restart that has the first two tokens. */
  goOn(peer: Peer, stream: number): void {
    this.started(peer, stream);
    this.tokens(peer, stream, 2, this.texts.length);
    this.done(peer, stream);
  }

  /** Answers a RESUME with all that it lacks. */
  resume(peer: Peer, [, stream, , , seq]: Resume): void {
    this.resumed(peer, stream);
    if (seq < this.texts.length) this.tokens(peer, stream, seq, this.texts.length);
    this.done(peer, stream);
  }
}

export const answer = new ScriptedAnswer(["Because ", "blue ", "light ", "scatters ", "more."]);
/** HELLO's failoverWaitMs in these tests. */
export const failoverWaitMs = 250;

type Greeting = NonNullable<Script["onOpen"]>;
export const home: Greeting = (peer) => peer.hello({ failoverWaitMs });
export const other: Greeting = (peer) => peer.hello({ failoverWaitMs, epoch: "epoch-2", resumeToken: "token-2" });

/** A scripted edge, and links to it. */
export class Stage {
  edge!: ScriptedEdge;
  readonly #links: Link[] = [];

  /** The nth connection, from 1, gets the nth greeting; the last greets all that follow. */
  async linked(greetings: readonly Greeting[] = [home], options: Partial<LinkOptions> = {}): Promise<Link> {
    this.edge = await ScriptedEdge.start({
      onOpen: (peer) => greetings[Math.min(this.edge.peers.length, greetings.length) - 1]?.(peer),
    });
    return this.link(options);
  }

  link(options: Partial<LinkOptions> = {}): Link {
    const link = new Link({ edge: this.edge.url, WebSocket, ...options });
    this.#links.push(link);
    return link;
  }

  /** Asks, and brings the answer to token 2. */
  async begun(link: Link) {
    const response = link.start(question, { maxTokens: 9 });
    const { peer, stream } = await this.edge.question();
    answer.started(peer, stream);
    answer.tokens(peer, stream, 0, 2);
    await untilSeq(response, 2);
    return { response, peer, stream };
  }

  /** What the nth connection offered beside the version. */
  offered(number: number): readonly string[] | undefined {
    return this.edge.peers[number - 1]?.protocols.slice(1);
  }

  async close(): Promise<void> {
    for (const link of this.#links.splice(0)) link.close();
    await this.edge.stop();
  }
}

/** Reads an answer to its end. */
export async function read(response: Response): Promise<string> {
  let text = "";
  for await (const delta of response) text += delta;
  return text;
}

/** Resolves once so many tokens have come. */
export async function untilSeq(response: Response, seq: number): Promise<void> {
  const pulls = response[Symbol.asyncIterator]();
  while (response.seq < seq) if ((await pulls.next()).done) throw new Error(`the answer ended at token ${response.seq}, before ${seq}`);
}

/** A connection that keeps what is sent, and on which a test says what comes. */
export class FakeConnection {
  readonly sent: ClientMessage[] = [];
  ended: Error | undefined;
  #stream = 0;

  join(_: StreamOwner, message: (stream: number) => ClientMessage): number {
    this.send(message(++this.#stream));
    return this.#stream;
  }

  send(message: ClientMessage): void {
    this.sent.push(message);
  }
}

const ownHome: Home = { url: "ws://127.0.0.1/v1/stream", epoch: "epoch-1", token: "token-1" };

/** An answer without a link: joined on fake connections, with what its keeper was told. */
export function answering(options: StartOptions = {}, reading: Reading = {}, kept?: Kept) {
  const asked: Asked = { messages: [["user", "Why?"]], options: { ...options, key: "k", seed: 5, tokenIds: true } };
  const left: Leave[] = [];
  let rejoins = 0;
  const response = new Response(asked, reading, { left: (_, how) => left.push(how), rejoin: () => rejoins++ }, kept);
  const join = (): FakeConnection => {
    const connection = new FakeConnection();
    response.tether.join(connection as unknown as Connection, ownHome);
    return connection;
  };
  const hear = (...messages: ServerMessage[]): void => {
    for (const message of messages) response.tether.hear(message);
  };
  return { response, left, join, hear, rejoins: () => rejoins };
}

/** One stream's messages, of stream 1. */
export const usage = { promptTokens: 3, cachedTokens: 0, completionTokens: 2, continuedTokens: 0 };
export const slo = { lateTokens: 0, good: true };
export const started: ServerMessage = [Op.STARTED, 1, "answer-7", 40, 2, { waitMs: 70 }];

export function tokens(seq: number, text: string): ServerMessage {
  return [Op.TOKENS, 1, seq, text, 0, [seq]];
}

export function done(text: string, seq: number, reason: FinishReason = "stop"): Done {
  const digest = new Digest();
  digest.update(new TextEncoder().encode(text));
  return [Op.DONE, 1, seq, reason, digest.bytes, digest.value, usage, timings, slo];
}
