import { expect, test } from "vitest";
import { begun, bindings, errorOf, fakeFleet, isolateTests, request } from "./support.js";

isolateTests();

test("a preflight allows POST with a JWT from any page", async () => {
  const response = await request("/v1/tickets", { method: "OPTIONS", headers: { origin: "https://shop.test" } });
  expect(response.status).toBe(204);
  expect(response.headers.get("access-control-allow-methods")).toBe("POST");
  expect(response.headers.get("access-control-allow-headers")).toContain("authorization");
});

test("/healthz is 200 on a configured edge and names what another lacks", async () => {
  expect(await (await request("/healthz", {})).json()).toEqual({ status: "ok", origins: ["origin-1"] });
  const { ORIGINS: _, ...withoutOrigins } = bindings;
  const error = await errorOf(await request("/healthz", {}, withoutOrigins));
  expect(error).toMatchObject({ status: 503, code: "edge_unconfigured" });
  expect(error.message).toContain("ORIGINS is not set");
});

test("/healthz says what each origin last said, once somebody came, and asks none itself", async () => {
  const fleet = fakeFleet("a", "b", "c");
  fleet.origins.a.state = "draining";
  const health = async () => (await request("/healthz", {}, fleet.bindings)).json();
  expect(await health()).toEqual({ status: "ok", origins: ["a", "b", "c"] });
  await begun(fleet, "b");
  expect(await health()).toEqual({ status: "ok", origins: ["a", "b", "c"], states: { a: "draining", b: "ready" } });
  expect([fleet.origins.a.probes, fleet.origins.b.probes, fleet.origins.c.probes]).toEqual([1, 1, 0]);
});

test.each([
  ["no JSON", "origin-1", "ORIGINS is not a JSON array"],
  ["an empty list", "[]", "ORIGINS is not a JSON array of 1 to 16"],
  ["an origin without a name", '[{"url":"http://127.0.0.1:1"}]', "ORIGINS[0] has no name"],
  [
    "an origin with a name of 65 characters",
    `[{"name":"${"a".repeat(65)}","url":"http://127.0.0.1:1"}]`,
    "ORIGINS[0] has no name of 1 to 64",
  ],
  ["two origins of one name", '[{"name":"a","url":"http://a.test"},{"name":"a","url":"http://b.test"}]', "ORIGINS[1] is a second one"],
  ["an origin that is not reached by HTTP", '[{"name":"a","url":"ws://127.0.0.1:1"}]', "ORIGINS[0] (a) has no http or https url"],
])("ORIGINS that is %s is named", async (_, ORIGINS, sentence) => {
  expect((await errorOf(await request("/healthz", {}, { ...bindings, ORIGINS }))).message).toContain(sentence);
});

test.each([
  ["GET", "/v2/stream"],
  ["POST", "/v1/stream"],
  ["GET", "/v1/tickets"],
])("%s %s is not found, by name", async (method, path) => {
  const error = await errorOf(await request(path, { method }));
  expect(error).toEqual({ status: 404, code: "not_found", message: `no route is ${method} ${path}` });
});

test("every plain answer of the Worker forbids framing, sniffing and loading", async () => {
  const { headers } = await request("/healthz", {});
  expect(headers.get("content-security-policy")).toBe("default-src 'none'; frame-ancestors 'none'");
  expect(headers.get("x-content-type-options")).toBe("nosniff");
});
