/** The two ways to say no: a status with JSON over plain HTTP, one ERROR frame and a close code over a WebSocket. */
import { encode } from "../shared/codec.js";
import { MillraceError } from "../shared/errors.js";
import { limits } from "../shared/limits.js";
import { Op } from "../shared/protocol.js";
import { socketPair, upgradeResponse } from "./workers.js";

/** What the client is told of anything thrown. Faults of ours are named in the log alone. */
export function asMillraceError(error: unknown): MillraceError {
  if (error instanceof MillraceError) return error;
  console.error("the edge failed:", error instanceof Error ? error.stack : error);
  return new MillraceError("internal", "the edge failed to handle this request; its log says why");
}

export function refuseHttp(error: MillraceError): Response {
  const headers: Record<string, string> = { "cache-control": "no-store", "x-content-type-options": "nosniff" };
  if (error.retryAfterMs > 0) headers["retry-after"] = String(Math.ceil(error.retryAfterMs / 1_000));
  return Response.json({ error: { code: error.code, message: error.message } }, { status: error.status, headers });
}

/**
 * Accepts the socket, says why and closes it: a browser tells its page nothing of an upgrade that failed.
 * @param selected the subprotocol to select; a browser that offered some fails a socket that selects none of them.
 */
export function refuseSocket(error: MillraceError, selected: string | undefined): Response {
  const { client, server } = socketPair();
  server.accept();
  server.send(encode([Op.ERROR, 0, error.code, cut(error.message), error.retryAfterMs]));
  server.close(error.closeCode, error.code);
  return upgradeResponse(client, selected === undefined ? {} : { "sec-websocket-protocol": selected });
}

/** At most limits.errorTextBytesMax bytes, in whole code points. */
function cut(message: string): string {
  const bytes = new Uint8Array(limits.errorTextBytesMax);
  const { read } = new TextEncoder().encodeInto(message, bytes);
  return message.slice(0, read);
}
