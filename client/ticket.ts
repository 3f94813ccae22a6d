import { isErrorCode, MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";

/** Leave to open one stream, once, within a minute. */
export interface Ticket {
  ticket: string;
  /** Seconds since the epoch. */
  expiresAt: number;
  /** Where to open it: `ws:` or `wss:`. */
  url: string;
}

/**
 * Asks the edge for a ticket.
 * @param edge its base URL. @param token the customer's JWT; without one, only an edge that takes anonymous visitors answers.
 * @throws MillraceError the edge's own refusal; `connection_lost` where it cannot be reached, `connection_timeout` where it is silent.
 */
export async function fetchTicket(edge: string, token?: string, timeoutMs: number = limits.openMs): Promise<Ticket> {
  const address = new URL("/v1/tickets", edge);
  const signal = AbortSignal.timeout(timeoutMs);
  const headers: Record<string, string> = token === undefined ? {} : { authorization: `Bearer ${token}` };
  let answer: Awaited<ReturnType<typeof fetch>>;
  let body: unknown;
  try {
    answer = await fetch(address, { method: "POST", headers, signal });
    body = await answer.json().catch((error: unknown) => {
      if (signal.aborted) throw error;
      return undefined;
    });
  } catch (error) {
    if (signal.aborted)
      throw new MillraceError("connection_timeout", `the edge at ${address.origin} did not answer within ${timeoutMs} ms`);
    throw new MillraceError("connection_lost", `the edge at ${address.origin} cannot be reached${causeOf(error)}`);
  }
  if (!answer.ok) throw refusal(address, answer.status, body, Number(answer.headers.get("retry-after")));
  if (!isTicket(body)) throw new MillraceError("internal", `${address} answered with something that is not a ticket`);
  return body;
}

/** The edge's `{"error": {"code", "message"}}` as an error; a proxy's page in its place still yields a sentence. */
function refusal(address: URL, status: number, body: unknown, retryAfterS: number): MillraceError {
  const { code, message } = ((body as { error?: unknown } | undefined)?.error ?? {}) as { code?: unknown; message?: unknown };
  const retryAfterMs = retryAfterS > 0 ? retryAfterS * 1_000 : 0;
  const sentence = typeof message === "string" ? message : `${address} answered ${status}, and not as an edge of Millrace does`;
  return new MillraceError(isErrorCode(code) ? code : "internal", sentence, retryAfterMs);
}

function isTicket(body: unknown): body is Ticket {
  const { ticket, expiresAt, url } = (body ?? {}) as Partial<Record<keyof Ticket, unknown>>;
  return typeof ticket === "string" && typeof expiresAt === "number" && typeof url === "string" && /^wss?:/.test(url);
}

/** Node says why in `cause`; a browser does not say. */
function causeOf(error: unknown): string {
  const { code } = ((error as { cause?: unknown } | undefined)?.cause ?? {}) as { code?: unknown };
  return typeof code === "string" ? ` (${code})` : "";
}
