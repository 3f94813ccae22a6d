/**
 * Millrace's client SDK, for browsers and Node: a `Link` keeps what is asked through lost sockets, restarted relays and dead origins. A
 * page whose Content Security Policy forbids eval should bundle msgpackr as msgpackr/index-no-eval: the usual build tries
 * `new Function`, which fails without harm but is reported.
 */
export { type ErrorCode, isErrorCode, MillraceError, type Retry } from "../shared/errors.js";
export type {
  Admission,
  ChatMessage,
  FinishReason,
  HelloInfo,
  Role,
  ServerMessage,
  Slo,
  StartOptions,
  Timings,
  Usage,
} from "../shared/protocol.js";
export type { Home } from "./attach.js";
export type { Connection, Socket, SocketConstructor } from "./connection.js";
export { Conversation, type Turn } from "./conversation.js";
export { type ConnectOptions, connect, type EdgeOptions } from "./dial.js";
export { isKept, Keep } from "./keep.js";
export type { LinkState } from "./line.js";
export { type AskOptions, Link, type LinkOptions, type Message } from "./link.js";
export type { Measures } from "./pace.js";
export type { Finished, Kept, Reading, Response } from "./response.js";
export { fetchTicket, type Ticket } from "./ticket.js";
export type { TokenLogprobs } from "./transcript.js";
