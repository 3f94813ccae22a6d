/** The Worker: which route goes where, and nothing else. The page itself is static assets, which Cloudflare serves without us. */
import { Hono } from "hono";
import { secureHeaders } from "hono/secure-headers";
import { MillraceError } from "../shared/errors.js";
import type { Bindings } from "./bindings.js";
import { asMillraceError, refuseHttp } from "./refusal.js";
import { status } from "./routes/status.js";
import { stream } from "./routes/stream.js";
import { tickets } from "./routes/tickets.js";

const app = new Hono<{ Bindings: Bindings }>();

app.use(secureHeaders({ contentSecurityPolicy: { defaultSrc: ["'none'"], frameAncestors: ["'none'"] } }));
app.route("/v1/tickets", tickets);
app.route("/", status);
app.notFound((context) =>
  refuseHttp(new MillraceError("not_found", `no route is ${context.req.method} ${context.req.path.slice(0, 200)}`)),
);
app.onError((error) => refuseHttp(asMillraceError(error)));

export default {
  fetch(request: Request, bindings: Bindings, context: { waitUntil(promise: Promise<unknown>): void }): Response | Promise<Response> {
    const isStream = request.method === "GET" && new URL(request.url).pathname === "/v1/stream";
    return isStream ? stream(request, bindings) : app.fetch(request, bindings, context as never);
  },
};
