import { Hono } from "hono";
import type { Bindings } from "../bindings.js";
import { signingKeys } from "../keys.js";
import { originsOf } from "../origins/registry.js";

/** `GET /healthz`: 200 where the edge has what it needs to admit anybody, else `edge_unconfigured`. */
export const status = new Hono<{ Bindings: Bindings }>();

status.get("/healthz", async (context) => {
  await signingKeys(context.env);
  const origins = originsOf(context.env);
  return context.json({ status: "ok", origins: origins.map(({ name }) => name) }, 200, { "cache-control": "no-store" });
});
