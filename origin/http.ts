/** What the origin answers to plain HTTP: its health, its metrics, and in JSON what it refuses. Knows no server. */
import { MillraceError } from "../shared/errors.js";
import { subprotocol } from "../shared/protocol.js";
import type { Metrics } from "./metrics.js";

export type OriginState = "loading" | "ready" | "draining";

export interface HttpAnswer {
  status: number;
  type: string;
  body: string;
  /** For a Retry-After header; 0 is none. */
  retryAfterMs: number;
}

export type HttpRoutes = (method: string, path: string) => HttpAnswer | Promise<HttpAnswer>;

/** `/healthz` says that the process lives, `/readyz` whether it takes new work, and which run of it this is: the edge probes it. */
export function httpRoutes(state: () => OriginState, epoch: string, metrics: Metrics): HttpRoutes {
  return (method, path) => {
    if (method !== "get" && method !== "head") return notFound(method, path);
    switch (path) {
      case "/healthz":
        return text(200, "ok\n");
      case "/readyz":
        return json(state() === "ready" ? 200 : 503, { state: state(), epoch });
      case "/metrics":
        return metrics.scrape().then((body) => ({ ...text(200, body), type: metrics.contentType }));
      case "/v1/stream":
        return refusal(
          new MillraceError("version_unsupported", `this route takes a WebSocket upgrade with the subprotocol ${subprotocol}`),
        );
      default:
        return notFound(method, path);
    }
  };
}

/** An error as HTTP says it. */
export function refusal(error: MillraceError): HttpAnswer {
  const { code, message, status, retryAfterMs } = error;
  return { ...json(status, { error: { code, message } }), retryAfterMs };
}

function json(status: number, value: object): HttpAnswer {
  return { status, type: "application/json", body: JSON.stringify(value), retryAfterMs: 0 };
}

function notFound(method: string, path: string): HttpAnswer {
  return refusal(new MillraceError("not_found", `there is no ${method.toUpperCase()} ${path.slice(0, 200)} here`));
}

function text(status: number, body: string): HttpAnswer {
  return { status, type: "text/plain; charset=utf-8", body, retryAfterMs: 0 };
}
