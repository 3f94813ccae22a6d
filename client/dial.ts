/** Opens connections: by ticket the first time, later by the resume token that HELLO gave, which leads back to the same origin. */
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import { elsewhere, resumePrefix, type ServerMessage, subprotocol, ticketPrefix } from "../shared/protocol.js";
import type { Home } from "./attach.js";
import { Connection, type SocketConstructor } from "./connection.js";
import { fetchTicket, type Ticket } from "./ticket.js";

/** Whom to connect to, and as whom. */
export interface EdgeOptions {
  /** The edge's base URL. */
  edge: string;
  /** The customer's JWT, for an edge that takes no anonymous visitors. */
  token?: string;
  /** Where tickets come from, in place of the edge: a backend that keeps the JWT to itself. Rejects with a MillraceError. */
  fetchTicket?: () => Promise<Ticket>;
  /** Where the runtime has none of its own (Node before 22): the package `ws`. */
  WebSocket?: SocketConstructor;
  /** How long the ticket, and then the socket, may take. Default limits.openMs. */
  openMs?: number;
  /** Sees every message that arrives, before it is acted upon. */
  onMessage?: (message: ServerMessage) => void;
}

export interface ConnectOptions extends EdgeOptions {
  /** Comes back to this session, without a ticket. */
  resume?: Pick<Home, "url" | "token">;
  /** Asks for another origin than the session's own. */
  elsewhere?: boolean;
  /** Given the connection as soon as there is one, before it is open. */
  onDial?: (connection: Connection) => void;
  /** Ends the attempt. */
  signal?: AbortSignal;
  /** Gives each stream its number. Default: from 1. */
  nextStream?: () => number;
}

/**
 * Opens one connection and waits for HELLO. It is not opened again when it ends: `Link` does that.
 * @throws MillraceError the edge's or the origin's refusal, or `connection_lost` or `connection_timeout`.
 */
export async function connect(options: ConnectOptions): Promise<Connection> {
  const { openMs = limits.openMs, onMessage, nextStream, signal } = options;
  const WebSocket = socketConstructor(options);
  const { url, credential } = await credentialOf(options, openMs);
  if (signal?.aborted) throw new MillraceError("closed_by_caller", "the attempt to connect was given up by its owner");
  const protocols = options.elsewhere ? [subprotocol, credential, elsewhere] : [subprotocol, credential];
  const optional = { ...(onMessage ? { onMessage } : {}), ...(nextStream ? { nextStream } : {}) };
  const connection = new Connection(new WebSocket(url, protocols), { url, openMs, ...optional });
  signal?.addEventListener("abort", () => connection.close(), { once: true });
  options.onDial?.(connection);
  return connection.opened;
}

/** @throws TypeError where this runtime has none. */
export function socketConstructor({ WebSocket }: Pick<EdgeOptions, "WebSocket">): SocketConstructor {
  const found = WebSocket ?? (globalThis as { WebSocket?: SocketConstructor }).WebSocket;
  if (!found) throw new TypeError("this runtime has no WebSocket: pass one as the option WebSocket, such as that of the package ws");
  return found;
}

async function credentialOf({ resume, ...options }: ConnectOptions, openMs: number): Promise<{ url: string; credential: string }> {
  if (resume) return { url: resume.url, credential: resumePrefix + resume.token };
  const { url, ticket } = await (options.fetchTicket?.() ?? fetchTicket(options.edge, options.token, openMs));
  return { url, credential: ticketPrefix + ticket };
}
