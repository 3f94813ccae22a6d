/**
 * The one table of error codes. A row gives the HTTP status, from which the WebSocket close code follows (4000 + status), and what
 * the client may do about it:
 * - `never`: the same request fails again; a person or a program must change it.
 * - `ticket`: fetch a new ticket, then try again.
 * - `later`: the same request may succeed after `retryAfterMs` (or a backoff of the client's own).
 */
export type Retry = "never" | "ticket" | "later";

interface ErrorRow {
  readonly status: number;
  readonly retry: Retry;
}

export const errorTable = {
  // What was sent cannot be read. The socket closes.
  frame_malformed: { status: 400, retry: "never" },
  frame_not_binary: { status: 415, retry: "never" },
  frame_too_large: { status: 413, retry: "never" },
  op_unknown: { status: 400, retry: "never" },
  version_unsupported: { status: 426, retry: "never" },
  // Who is asking. The socket closes.
  credential_missing: { status: 401, retry: "never" },
  credential_invalid: { status: 401, retry: "never" },
  ticket_missing: { status: 401, retry: "ticket" },
  ticket_invalid: { status: 401, retry: "ticket" },
  ticket_expired: { status: 401, retry: "ticket" },
  page_origin_refused: { status: 403, retry: "never" },
  assertion_invalid: { status: 401, retry: "ticket" },
  session_expired: { status: 401, retry: "ticket" },
  resume_invalid: { status: 401, retry: "ticket" },
  // The edge took the origin for another run of it than it is. No client sees it.
  epoch_changed: { status: 503, retry: "later" },
  // What was asked. One stream ends, the socket lives.
  field_invalid: { status: 422, retry: "never" },
  key_conflict: { status: 409, retry: "never" },
  history_unknown: { status: 404, retry: "never" },
  stream_reused: { status: 409, retry: "never" },
  streams_exhausted: { status: 429, retry: "later" },
  subscribers_exhausted: { status: 429, retry: "later" },
  context_exceeded: { status: 422, retry: "never" },
  // How one answer ended.
  credit_exhausted: { status: 408, retry: "never" },
  // Who cannot answer now.
  overloaded: { status: 503, retry: "later" },
  model_loading: { status: 503, retry: "later" },
  draining: { status: 503, retry: "later" },
  outbox_overflow: { status: 503, retry: "later" },
  origin_unreachable: { status: 502, retry: "later" },
  edge_unconfigured: { status: 503, retry: "never" },
  not_found: { status: 404, retry: "never" },
  internal: { status: 500, retry: "later" },
  // Said by the SDK itself: no frame carries these.
  connection_lost: { status: 502, retry: "later" },
  connection_timeout: { status: 504, retry: "later" },
  answer_damaged: { status: 502, retry: "later" },
  closed_by_caller: { status: 499, retry: "never" },
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof errorTable;

export function isErrorCode(value: unknown): value is ErrorCode {
  return typeof value === "string" && Object.hasOwn(errorTable, value);
}

/** The WebSocket close code of an error: 4000 plus its HTTP status. */
export function closeCodeOf(code: ErrorCode): number {
  return 4000 + errorTable[code].status;
}

/** The one error that the protocol's code throws and the SDK hands to its user. `message` is a sentence for a person. */
export class MillraceError extends Error {
  override readonly name = "MillraceError";

  /** @param retryAfterMs when the same request is worth sending again; 0 where the sender does not say. */
  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly retryAfterMs = 0,
  ) {
    super(message);
  }

  get status(): number {
    return errorTable[this.code].status;
  }

  get closeCode(): number {
    return closeCodeOf(this.code);
  }

  get retry(): Retry {
    return errorTable[this.code].retry;
  }
}
