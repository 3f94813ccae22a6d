import { MillraceError } from "../../shared/errors.js";
import { elsewhere, resumePrefix, subprotocol, ticketPrefix } from "../../shared/protocol.js";
import { signAssertion } from "../assertion.js";
import type { Bindings } from "../bindings.js";
import { type SigningKeys, signingKeys } from "../keys.js";
import { edgeLimits } from "../limits.js";
import { type Means, openStream } from "../origins/choose.js";
import { probe, probeAfresh } from "../origins/probe.js";
import { originsOf } from "../origins/registry.js";
import { openUpstream } from "../origins/upstream.js";
import { asMillraceError, refuseHttp, refuseSocket } from "../refusal.js";
import { redeemResumeToken } from "../resume.js";
import type { Session } from "../session.js";
import { Stopwatch } from "../stopwatch.js";
import { redeemTicket } from "../ticket.js";

/**
 * Redeems the ticket or resume token and returns an origin's 101 response as it came, so that the runtime carries every later frame by
 * itself. Stands outside all middleware: whatever touches the response (to set a header, say) would replace it by a copy without its
 * socket.
 */
export async function stream(request: Request, bindings: Bindings): Promise<Response> {
  const upgrade = request.headers.get("upgrade")?.toLowerCase() === "websocket";
  const offered = offeredSubprotocols(request);
  try {
    return await relay(request, upgrade, offered, bindings);
  } catch (thrown) {
    const error = asMillraceError(thrown);
    return upgrade ? refuseSocket(error, selectedOf(offered)) : refuseHttp(error);
  }
}

async function relay(request: Request, upgrade: boolean, offered: string[], bindings: Bindings): Promise<Response> {
  const keys = await signingKeys(bindings);
  const origins = originsOf(bindings);
  if (!offered.includes(subprotocol)) throw unsupported(`${shown(offered)} offered, and this edge speaks "${subprotocol}"`);
  const stopwatch = new Stopwatch();
  const session = await stopwatch.spend("redeemMs", () => redeem(offered, request.headers.get("origin"), keys));
  if (!upgrade) throw unsupported("this route speaks over WebSocket alone, and the request has no upgrade header");
  const wish = { home: session.home, elsewhere: offered.includes(elsewhere) };
  return openStream(origins, wish, meansOf(session, stopwatch, keys));
}

/** The session that a ticket begins or, without one, that a resume token carries on. */
async function redeem(offered: string[], page: string | null, keys: SigningKeys): Promise<Session> {
  const ticket = offeredAfter(ticketPrefix, offered);
  if (ticket) return redeemTicket(ticket, page, keys);
  const token = offeredAfter(resumePrefix, offered);
  if (token) return redeemResumeToken(token, page, keys);
  throw new MillraceError(
    "ticket_missing",
    `no subprotocol begins with "${ticketPrefix}" or "${resumePrefix}": fetch a ticket with POST /v1/tickets and offer it`,
  );
}

/** The network, with its time counted. An assertion is told of what was spent before it, so not of the connection it is for. */
function meansOf(session: Session, stopwatch: Stopwatch, keys: SigningKeys): Means {
  return {
    probe: (origin) => stopwatch.spend("chooseMs", () => probe(origin)),
    probeAfresh: (origin) => stopwatch.spend("chooseMs", () => probeAfresh(origin)),
    open: (approach) =>
      stopwatch.spend("connectMs", async () =>
        openUpstream(approach.origin, await signAssertion(session, approach, stopwatch.timings, keys)),
      ),
  };
}

function offeredSubprotocols(request: Request): string[] {
  const header = request.headers.get("sec-websocket-protocol") ?? "";
  return header
    .split(",")
    .map((protocol) => protocol.trim())
    .filter(Boolean);
}

function offeredAfter(prefix: string, offered: string[]): string | undefined {
  return offered.find((protocol) => protocol.startsWith(prefix))?.slice(prefix.length);
}

/** What a refused socket selects: a browser fails one that selects none of its offers, but none of those with a secret is said again. */
function selectedOf(offered: string[]): string | undefined {
  return offered.includes(subprotocol) ? subprotocol : offered.find((protocol) => !secretPrefix(protocol));
}

/**
 * Tickets and resume tokens are secrets, also in an error's sentence, which may end in a log. What a name begins with is all that is shown
 * of it: of a secret that lacks its prefix that is the head, which is everybody's.
 */
function shown(offered: string[]): string {
  const names = offered.map((protocol) => {
    const prefix = secretPrefix(protocol) ?? protocol.slice(0, edgeLimits.shownNameCharsMax);
    return prefix.length < protocol.length ? `${prefix}...` : protocol;
  });
  return names.length === 0 ? "no subprotocol is" : `${JSON.stringify(names).slice(0, 200)} is`;
}

function secretPrefix(protocol: string): string | undefined {
  return [ticketPrefix, resumePrefix].find((prefix) => protocol.startsWith(prefix));
}

function unsupported(why: string): MillraceError {
  return new MillraceError("version_unsupported", why);
}
