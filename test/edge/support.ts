/** What the edge's tests share: bindings with fresh keys, requests to the Worker, and the socket it answers with. Runs in workerd. */
import { decodeJwt, exportJWK, generateKeyPair, type JWK, type JWTPayload, SignJWT } from "jose";
import { afterEach, beforeEach, expect, vi } from "vitest";
import type { Bindings } from "../../edge/bindings.js";
import worker from "../../edge/index.js";
import { type PairedSocket, socketPair, type UpgradedResponse, upgradeResponse } from "../../edge/workers.js";
import type { AssertionClaims } from "../../shared/assertion.js";
import { decodeServerMessage } from "../../shared/codec.js";
import { closeCodeOf, type ErrorCode, errorTable } from "../../shared/errors.js";
import { Op, type ServerMessage } from "../../shared/protocol.js";

export interface TestKey {
  sign: CryptoKey;
  privateJwk: JWK;
  publicJwk: JWK;
}

export async function makeKey(): Promise<TestKey> {
  const pair = await generateKeyPair("EdDSA", { extractable: true });
  return { sign: pair.privateKey, privateJwk: await exportJWK(pair.privateKey), publicJwk: await exportJWK(pair.publicKey) };
}

export const edgeKey = await makeKey();
export const customerKey = await makeKey();
export const customerSecret = "a secret of thirty-two bytes, or more";

/** A configured edge without anonymous access. */
export const bindings: Bindings = {
  EDGE_SIGNING_KEY: JSON.stringify(edgeKey.privateJwk),
  ORIGINS: JSON.stringify([{ name: "origin-1", url: "http://origin-1.test:9101" }]),
  CUSTOMER_JWT_PUBLIC_KEY: JSON.stringify(customerKey.publicJwk),
};

export const edge = "https://edge.test";

export async function request(path: string, init: RequestInit, given: Bindings = bindings): Promise<Response> {
  return worker.fetch(new Request(`${edge}${path}`, init), given, { waitUntil: () => {} });
}

/** A customer's JWT that lives a minute, unless `claims` says otherwise. */
export function customerJwt(claims: JWTPayload = {}, key: CryptoKey | Uint8Array = customerKey.sign, alg = "EdDSA"): Promise<string> {
  return new SignJWT({ sub: "ada", tenant: "analytical", exp: Math.floor(Date.now() / 1_000) + 60, ...claims })
    .setProtectedHeader({ alg })
    .sign(key);
}

export function postTicket(headers: Record<string, string>, given: Bindings = bindings): Promise<Response> {
  return request("/v1/tickets", { method: "POST", headers }, given);
}

/** A ticket for ada, bound to `page` if there is one. */
export async function ticketFor(page?: string, claims: JWTPayload = {}): Promise<string> {
  const headers: Record<string, string> = { authorization: `Bearer ${await customerJwt(claims)}` };
  if (page) headers.origin = page;
  const response = await postTicket(headers);
  return ((await response.json()) as { ticket: string }).ticket;
}

export function openStream(headers: Record<string, string>, given: Bindings = bindings): Promise<Response> {
  return request("/v1/stream", { headers: { upgrade: "websocket", ...headers } }, given);
}

export function offer(ticket: string): Record<string, string> {
  return { "sec-websocket-protocol": `millrace.v1, ticket.${ticket}` };
}

/** Further ones may follow the token. */
export function offerResume(token: string, ...more: string[]): Record<string, string> {
  return { "sec-websocket-protocol": ["millrace.v1", `resume.${token}`, ...more].join(", ") };
}

export interface Heard {
  selected: string | null;
  messages: (ServerMessage | undefined)[];
  closeCode: number;
  closeReason: string;
}

/** All that an upgraded response says until it closes. */
export async function listen(response: Response): Promise<Heard> {
  const socket = (response as UpgradedResponse).webSocket;
  if (!socket) throw new Error(`the answer is ${response.status}, not an upgrade: ${await response.text()}`);
  const messages: Heard["messages"] = [];
  const closed = new Promise<CloseEvent>((resolve) => {
    socket.addEventListener("message", (event) => {
      messages.push(decodeServerMessage(new Uint8Array((event as MessageEvent).data)));
    });
    socket.addEventListener("close", (event) => resolve(event as CloseEvent));
  });
  (socket as PairedSocket & { binaryType: string }).binaryType = "arraybuffer";
  socket.accept();
  const { code, reason } = await closed;
  socket.close();
  return { selected: response.headers.get("sec-websocket-protocol"), messages, closeCode: code, closeReason: reason };
}

/** One ERROR on the connection's own stream, then the close code of the table. @returns the time after which to try again. */
export async function expectRefusal(response: Response, code: ErrorCode, sentence: string): Promise<number> {
  const heard = await listen(response);
  expect(heard.messages).toEqual([[Op.ERROR, 0, code, expect.stringContaining(sentence), expect.any(Number)]]);
  expect([heard.closeCode, heard.closeReason]).toEqual([closeCodeOf(code), code]);
  return heard.messages[0]?.[4] as number;
}

/** The error of a plain HTTP answer. */
export async function errorOf(response: Response): Promise<{ status: number; code: string; message: string }> {
  const { error } = (await response.json()) as { error: { code: string; message: string } };
  return { status: response.status, ...error };
}

/** Stands for the network behind the Worker; the upgrades that it asked for are in `requests`. Probes find `epoch-1`, ready. */
export function fakeOrigins(answer: (request: Request) => Response | Promise<Response>): Request[] {
  const requests: Request[] = [];
  vi.stubGlobal("fetch", async (url: string, init: RequestInit) => {
    const asked = new Request(url, init);
    if (asked.url.endsWith("/readyz")) return readiness("ready", "epoch-1");
    requests.push(asked);
    return answer(asked);
  });
  return requests;
}

/** What an origin answers to a probe. */
export function readiness(state: string, epoch: string): Response {
  return Response.json({ state, epoch }, { status: state === "ready" ? 200 : 503 });
}

/** What an origin answers to an upgrade that it does not take. */
export function refusal(code: ErrorCode): Response {
  return Response.json({ error: { code, message: `this origin says ${code}` } }, { status: errorTable[code].status });
}

export function upgraded(): Response {
  return upgradeResponse(socketPair().client, { "sec-websocket-protocol": "millrace.v1" });
}

/** One origin of a fleet. What it is may change at any time, as it does under a Worker that remembers. */
export interface FakeOrigin {
  state: "ready" | "loading" | "draining" | "unreachable";
  epoch: string;
  /** What it says to every upgrade, if anything. */
  refuses?: ErrorCode;
  /** What it was told in each upgrade that reached it, taken or not. */
  assertions: AssertionClaims[];
  /** How often it was asked, whether it could be reached or not: for its state, for a socket. */
  probes: number;
  knocks: number;
}

export interface FakeFleet<Name extends string> {
  origins: Record<Name, FakeOrigin>;
  bindings: Bindings;
}

let fleets = 0;

/** Origins that answer as real ones do, ready, each with its name and "-1" as its epoch. No earlier test has probed their addresses. */
export function fakeFleet<Name extends string>(...names: Name[]): FakeFleet<Name> {
  const fleet = ++fleets;
  const origins = {} as Record<Name, FakeOrigin>;
  for (const name of names) origins[name] = { state: "ready", epoch: `${name}-1`, assertions: [], probes: 0, knocks: 0 };
  vi.stubGlobal("fetch", async (url: string, init: RequestInit) => {
    const { hostname, pathname } = new URL(url);
    const origin = origins[hostname.split(".")[0] as Name];
    const upgrade = pathname === "/v1/stream";
    origin[upgrade ? "knocks" : "probes"]++;
    if (origin.state === "unreachable") throw new TypeError("connection refused");
    return upgrade ? answerUpgrade(origin, new Request(url, init)) : readiness(origin.state, origin.epoch);
  });
  const list = names.map((name) => ({ name, url: `http://${name}.fleet-${fleet}.test` }));
  return { origins, bindings: { ...bindings, ORIGINS: JSON.stringify(list) } };
}

function answerUpgrade(origin: FakeOrigin, request: Request): Response {
  const claims = decodeJwt<AssertionClaims>(request.headers.get("authorization")?.slice("Bearer ".length) ?? "");
  origin.assertions.push(claims);
  if (claims.epoch !== undefined && claims.epoch !== origin.epoch) return refusal("epoch_changed");
  if (origin.refuses) return refusal(origin.refuses);
  if (origin.state === "loading") return refusal("model_loading");
  if (origin.state === "draining" && !claims.returning) return refusal("draining");
  return upgraded();
}

/** Opens a session with a ticket of ada's. @returns the resume token that its origin was given for HELLO. */
export async function begun<Name extends string>(fleet: FakeFleet<Name>, at: Name, page?: string): Promise<string> {
  const headers = { ...offer(await ticketFor(page)), ...(page ? { origin: page } : {}) };
  expect((await openStream(headers, fleet.bindings)).status).toBe(101);
  const token = fleet.origins[at].assertions.at(-1)?.resume;
  if (token === undefined) throw new Error(`origin ${at} was given no resume token`);
  return token;
}

/** A clock that stands still until it is moved; `vi.restoreAllMocks` ends it. */
export function stillClock(): { advance(ms: number): void } {
  let nowMs = performance.now();
  vi.spyOn(performance, "now").mockImplementation(() => nowMs);
  return {
    advance: (ms) => {
      nowMs += ms;
    },
  };
}

/** For the tests of a file: each finds clock, globals and functions as they came, and what the Worker logs stays out of the output. */
export function isolateTests(): void {
  beforeEach(() => {
    for (const level of ["warn", "error"] as const) vi.spyOn(console, level).mockImplementation(() => {});
  });
  afterEach(() => {
    vi.unstubAllGlobals();
    vi.useRealTimers();
    vi.restoreAllMocks();
  });
}
