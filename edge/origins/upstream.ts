import { isErrorCode, MillraceError } from "../../shared/errors.js";
import { subprotocol } from "../../shared/protocol.js";
import { edgeLimits } from "../limits.js";
import { isUpgraded } from "../workers.js";
import { textOf } from "./body.js";
import { markUnsure } from "./probe.js";
import type { Origin } from "./registry.js";

/**
 * Opens a socket to an origin. The request is built from nothing: no header, cookie or ticket of the client's travels, and no
 * extension is offered, so that nothing between here and there compresses.
 * @returns the origin's own 101 response.
 * @throws MillraceError what the origin said, or `origin_unreachable`.
 */
export async function openUpstream(origin: Origin, assertion: string): Promise<Response> {
  const response = await answerOf(origin, {
    upgrade: "websocket",
    "sec-websocket-protocol": subprotocol,
    authorization: `Bearer ${assertion}`,
  });
  if (isUpgraded(response)) return response;
  throw await refusalOf(origin, response);
}

async function answerOf(origin: Origin, headers: Record<string, string>): Promise<Response> {
  // The signal is kept for the answer alone: an abort after that would cut the stream.
  const deadline = new AbortController();
  const timer = setTimeout(() => deadline.abort(), edgeLimits.originAnswerMs);
  try {
    return await fetch(new URL("/v1/stream", origin.url).href, { headers, redirect: "manual", signal: deadline.signal });
  } catch (error) {
    markUnsure(origin);
    console.warn(`origin ${origin.name} at ${origin.url} did not answer:`, error instanceof Error ? error.message : error);
    const why = deadline.signal.aborted ? `did not answer within ${edgeLimits.originAnswerMs} ms` : "could not be reached";
    throw new MillraceError("origin_unreachable", `origin ${origin.name} ${why}`);
  } finally {
    clearTimeout(timer);
  }
}

/** An origin refuses as the edge does over plain HTTP; its code and sentence are passed on. */
async function refusalOf(origin: Origin, response: Response): Promise<MillraceError> {
  const error = errorIn(await textOf(response, edgeLimits.originErrorBytesMax));
  if (!error)
    return new MillraceError("origin_unreachable", `origin ${origin.name} answered ${response.status}, which is no answer of an origin`);
  const retryAfterMs = Number(response.headers.get("retry-after") ?? 0) * 1_000;
  return new MillraceError(error.code, error.message, Number.isFinite(retryAfterMs) ? retryAfterMs : 0);
}

function errorIn(text: string): Pick<MillraceError, "code" | "message"> | undefined {
  try {
    const { code, message } = (JSON.parse(text) as { error: { code: unknown; message: unknown } }).error;
    return isErrorCode(code) && typeof message === "string" ? { code, message } : undefined;
  } catch {
    return undefined;
  }
}
