import { type Context, Hono } from "hono";
import { authenticate } from "../auth.js";
import type { Bindings } from "../bindings.js";
import { signingKeys } from "../keys.js";
import { edgeLimits } from "../limits.js";
import { asMillraceError, refuseHttp } from "../refusal.js";
import { issueTicket } from "../ticket.js";

type Env = { Bindings: Bindings };

/**
 * `POST /v1/tickets`. A page of any origin may call it with a JWT: nothing that a browser sends by itself (no cookie) is taken for
 * authority, so reading the answer is open to whoever had the JWT. An anonymous ticket has no such proof; the edge's own page and
 * agents may read it, but no page of another origin, or any site could spend this edge's compute through its visitors.
 */
export const tickets = new Hono<Env>();

tickets.options("/", (context) =>
  context.body(null, 204, {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST",
    "access-control-allow-headers": "authorization, content-type",
    "access-control-max-age": String(edgeLimits.corsMaxAgeS),
  }),
);

tickets.post("/", async (context) => {
  try {
    return await issue(context);
  } catch (error) {
    const refusal = refuseHttp(asMillraceError(error));
    refusal.headers.set("access-control-allow-origin", "*");
    return refusal;
  }
});

async function issue(context: Context<Env>): Promise<Response> {
  const { headers, url } = context.req.raw;
  const authorization = headers.get("authorization");
  const keys = await signingKeys(context.env);
  const principal = await authenticate(authorization, context.env);
  const ticket = await issueTicket(principal, headers.get("origin"), keys);
  const readable: Record<string, string> = authorization === null ? {} : { "access-control-allow-origin": "*" };
  return context.json({ ...ticket, url: streamUrl(url) }, 200, { "cache-control": "no-store", ...readable });
}

function streamUrl(requestUrl: string): string {
  const url = new URL("/v1/stream", requestUrl);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}
