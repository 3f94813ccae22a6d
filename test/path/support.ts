/** What the tests over the real path share: the SDK on ws, raw sockets that say what the SDK never would, and deadlines. */
import type { IncomingMessage } from "node:http";
import { expect } from "vitest";
import { WebSocket } from "ws";
import type { Connection } from "../../client/connection.js";
import { connect } from "../../client/dial.js";
import { Link, type LinkOptions } from "../../client/link.js";
import type { Response } from "../../client/response.js";
import { fetchTicket } from "../../client/ticket.js";
import { decodeServerMessage } from "../../shared/codec.js";
import type { ServerMessage } from "../../shared/protocol.js";
import type { Stack } from "../support/stack.js";

/** Longer than anything here takes on a busy machine, shorter than the test's own limit. */
const deadlineMs = 15_000;

/** Settles as `promise` does, or fails naming what did not happen. */
export async function within<Value>(promise: Promise<Value>, what: string): Promise<Value> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} did not happen within ${deadlineMs} ms`)), deadlineMs);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** One connection, which is not opened again. */
export function open(stack: Stack): Promise<Connection> {
  return within(connect({ edge: stack.edgeUrl, WebSocket }), "the connection");
}

/** Whoever makes it closes it. */
export function linkTo(stack: Stack, options: Partial<LinkOptions> = {}): Link {
  return new Link({ edge: stack.edgeUrl, WebSocket, ...options });
}

/** Resolves once the link's state is of this kind. */
export function untilState(link: Link, kind: NonNullable<Link["state"]>["kind"]): Promise<void> {
  return expect.poll(() => link.state?.kind, { timeout: deadlineMs }).toBe(kind) as unknown as Promise<void>;
}

/** Reads until `count` deltas have come and leaves the answer running. */
export async function readSome(response: Response, count: number): Promise<string> {
  const deltas = response[Symbol.asyncIterator]();
  let text = "";
  for (let read = 0; read < count; read++) {
    const { value, done } = await within(deltas.next(), `delta ${read + 1}`);
    if (done) throw new Error(`the answer ended after ${read} deltas: ${text}`);
    text += value;
  }
  return text;
}

/** A socket that is free to misbehave, and keeps all that it hears. */
export class RawClient {
  readonly messages: ServerMessage[] = [];
  readonly closed: Promise<{ code: number; reason: string }>;
  /** The answer to the upgrade. */
  response: IncomingMessage | undefined;
  readonly #arrivals: (() => void)[] = [];

  constructor(readonly socket: WebSocket) {
    socket.on("upgrade", (response) => {
      this.response = response;
    });
    socket.on("message", (data: Buffer) => {
      const message = decodeServerMessage(data);
      if (message) this.messages.push(message);
      for (const arrived of this.#arrivals.splice(0)) arrived();
    });
    socket.on("error", () => {});
    this.closed = new Promise((resolve) => socket.on("close", (code, reason) => resolve({ code, reason: reason.toString() })));
  }

  /** Opens `/v1/stream` with these subprotocols. */
  static to(stack: Stack, subprotocols: string[], headers: Record<string, string> = {}): RawClient {
    return new RawClient(new WebSocket(`${stack.edgeUrl.replace("http", "ws")}/v1/stream`, subprotocols, { headers }));
  }

  /** Opens it with a good ticket and waits for HELLO. */
  static async greeted(stack: Stack): Promise<RawClient> {
    const { ticket } = await fetchTicket(stack.edgeUrl);
    const client = RawClient.to(stack, ["millrace.v1", `ticket.${ticket}`]);
    await client.next(1);
    return client;
  }

  /** The first message of this op, past or to come. */
  async next(op: number): Promise<ServerMessage> {
    for (;;) {
      const found = this.messages.find((message) => message[0] === op);
      if (found) return found;
      const arrival = new Promise<void>((resolve) => this.#arrivals.push(resolve));
      const end = this.closed.then(({ code, reason }) => {
        throw new Error(`the socket closed with ${code} ${reason} before a message of op ${op}`);
      });
      await within(Promise.race([arrival, end]), `a message of op ${op}`);
    }
  }
}
