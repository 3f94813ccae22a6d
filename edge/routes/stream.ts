import { MillraceError } from "../../shared/errors.js";
import { subprotocol, ticketPrefix } from "../../shared/protocol.js";
import type { Bindings } from "../bindings.js";
import { signingKeys } from "../keys.js";
import { edgeLimits } from "../limits.js";
import { openOnFirst } from "../origins/choose.js";
import { originsOf } from "../origins/registry.js";
import { openUpstream } from "../origins/upstream.js";
import { asMillraceError, refuseHttp, refuseSocket } from "../refusal.js";
import { redeemTicket, signAssertion } from "../ticket.js";

/**
 * Redeems the ticket and returns an origin's 101 response as it came, so that the runtime carries every later frame by itself.
 * Stands outside all middleware: whatever touches the response (to set a header, say) would replace it by a copy without its socket.
 */
export async function stream(request: Request, bindings: Bindings): Promise<Response> {
  const upgrade = request.headers.get("upgrade")?.toLowerCase() === "websocket";
  const offered = offeredSubprotocols(request);
  try {
    return await relay(request, upgrade, offered, bindings);
  } catch (thrown) {
    const error = asMillraceError(thrown);
    return upgrade ? refuseSocket(error, offered.includes(subprotocol) ? subprotocol : offered[0]) : refuseHttp(error);
  }
}

async function relay(request: Request, upgrade: boolean, offered: string[], bindings: Bindings): Promise<Response> {
  const keys = await signingKeys(bindings);
  const origins = originsOf(bindings);
  if (!offered.includes(subprotocol)) throw unsupported(`${shown(offered)} offered, and this edge speaks "${subprotocol}"`);
  const principal = await redeemTicket(ticketIn(offered), request.headers.get("origin"), keys);
  if (!upgrade) throw unsupported("this route speaks over WebSocket alone, and the request has no upgrade header");
  return openOnFirst(origins, async (origin) => openUpstream(origin, await signAssertion(principal, origin.name, keys)));
}

function ticketIn(offered: string[]): string {
  const ticket = offered.find((protocol) => protocol.startsWith(ticketPrefix))?.slice(ticketPrefix.length);
  if (!ticket)
    throw new MillraceError(
      "ticket_missing",
      `no subprotocol begins with "${ticketPrefix}": fetch a ticket with POST /v1/tickets and offer it`,
    );
  if (ticket.length > edgeLimits.tokenBytesMax)
    throw new MillraceError("ticket_invalid", `the ticket has ${ticket.length} bytes, over ${edgeLimits.tokenBytesMax}`);
  return ticket;
}

function offeredSubprotocols(request: Request): string[] {
  const header = request.headers.get("sec-websocket-protocol") ?? "";
  return header
    .split(",")
    .map((protocol) => protocol.trim())
    .filter(Boolean);
}

/** Tickets are secrets, also in an error's sentence, which may end in a log. */
function shown(offered: string[]): string {
  const names = offered.map((protocol) => (protocol.startsWith(ticketPrefix) ? `${ticketPrefix}...` : protocol));
  return names.length === 0 ? "no subprotocol is" : `${JSON.stringify(names).slice(0, 200)} is`;
}

function unsupported(why: string): MillraceError {
  return new MillraceError("version_unsupported", why);
}
