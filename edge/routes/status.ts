import { Hono } from "hono";
import type { Bindings } from "../bindings.js";
import { signingKeys } from "../keys.js";
import { lastStates } from "../origins/probe.js";
import { originsOf } from "../origins/registry.js";

/**
 * `GET /healthz`: 200 where the edge has what it needs to admit anybody, else `edge_unconfigured`. `states` is what the origins last said
 * to this isolate, absent where it has asked none yet. This route asks none, or anybody could have the origins asked at will.
 */
export const status = new Hono<{ Bindings: Bindings }>();

status.get("/healthz", async (context) => {
  await signingKeys(context.env);
  const origins = originsOf(context.env);
  const health = { status: "ok", origins: origins.map(({ name }) => name), states: lastStates(origins) };
  return context.json(health, 200, { "cache-control": "no-store" });
});
