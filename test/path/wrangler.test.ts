import { afterAll, beforeAll, expect, test } from "vitest";
import type { Link } from "../../client/link.js";
import { buildPage } from "../../scripts/build-page.js";
import { root } from "../support/edgeProcess.js";
import { type Stack, startStack } from "../support/stack.js";
import { linkTo } from "./support.js";

/** The edge as `npm start` runs it: under wrangler's development server, with the page beside the Worker. */
let stack: Stack;
let link: Link | undefined;

beforeAll(async () => {
  await buildPage(root);
  stack = await startStack({ edge: "wrangler", originArgs: ["--simulated-rate", "500", "--simulated-answer", "20"] });
});
afterAll(async () => {
  link?.close();
  await stack?.stop();
});

test("the page is served with a policy that loads nothing remote and forbids framing", async () => {
  const { status, headers } = await fetch(stack.edgeUrl);
  expect([status, headers.get("content-type")]).toEqual([200, "text/html; charset=utf-8"]);
  const policy = headers.get("content-security-policy")?.split("; ") ?? [];
  expect(policy).toEqual(
    expect.arrayContaining(["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"]),
  );
  expect(policy.join(" ")).not.toMatch(/unsafe|https?:|\*/);
  expect(headers.get("x-content-type-options")).toBe("nosniff");
});

test("the Worker has its bindings from the env file, and answers what is no asset", async () => {
  expect(await (await fetch(`${stack.edgeUrl}/healthz`)).json()).toEqual({ status: "ok", origins: ["origin-1"] });
  const missing = await fetch(`${stack.edgeUrl}/nowhere`);
  expect([missing.status, await missing.json()]).toEqual([404, { error: { code: "not_found", message: "no route is GET /nowhere" } }]);
});

test("an answer streams through wrangler's development proxy too", async () => {
  link = linkTo(stack);
  const response = link.start([{ role: "user", content: "hello" }]);
  expect((await response.done).usage.completionTokens).toBe(20);
});
