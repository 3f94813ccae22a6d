/**
 * Millrace's client SDK, for browsers and Node. A page whose Content Security Policy forbids eval should bundle msgpackr as
 * msgpackr/index-no-eval: the usual build tries `new Function`, which fails without harm but is reported.
 */
export { type ErrorCode, MillraceError, type Retry } from "../shared/errors.js";
export type {
  Admission,
  ChatMessage,
  FinishReason,
  HelloInfo,
  Role,
  ServerMessage,
  StartOptions,
  Timings,
  Usage,
} from "../shared/protocol.js";
export { type Connection, type ConnectOptions, connect, type Message, type Socket, type SocketConstructor } from "./connection.js";
export { Conversation } from "./conversation.js";
export { Link, type LinkState } from "./link.js";
export type { Measures } from "./pace.js";
export type { Finished, Response, TokenLogprobs } from "./response.js";
export { fetchTicket, type Ticket } from "./ticket.js";
