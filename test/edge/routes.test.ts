import { expect, test } from "vitest";
import { bindings, errorOf, request } from "./support.js";

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

test.each([
  ["no JSON", "origin-1", "ORIGINS is not a JSON array"],
  ["an empty list", "[]", "ORIGINS is not a JSON array of 1 to 16"],
  ["an origin without a name", '[{"url":"http://127.0.0.1:1"}]', "ORIGINS[0] has no name"],
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
