/** What the edge's tests share: bindings with fresh keys, requests to the Worker, and the socket it answers with. Runs in workerd. */
import { exportJWK, generateKeyPair, type JWK, type JWTPayload, SignJWT } from "jose";
import { vi } from "vitest";
import type { Bindings } from "../../edge/bindings.js";
import worker from "../../edge/index.js";
import { type PairedSocket, socketPair, type UpgradedResponse, upgradeResponse } from "../../edge/workers.js";
import { decodeServerMessage } from "../../shared/codec.js";
import type { ServerMessage } from "../../shared/protocol.js";

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

/** The error of a plain HTTP answer. */
export async function errorOf(response: Response): Promise<{ status: number; code: string; message: string }> {
  const { error } = (await response.json()) as { error: { code: string; message: string } };
  return { status: response.status, ...error };
}

/** Stands for the network behind the Worker; what it asked for is in `requests`. */
export function fakeOrigins(answer: (request: Request) => Response | Promise<Response>): Request[] {
  const requests: Request[] = [];
  vi.stubGlobal("fetch", async (url: string, init: RequestInit) => {
    const asked = new Request(url, init);
    requests.push(asked);
    return answer(asked);
  });
  return requests;
}

export function upgraded(): Response {
  return upgradeResponse(socketPair().client, { "sec-websocket-protocol": "millrace.v1" });
}

/** Keeps what the Worker logs out of the test's output. */
export function quietly(): void {
  for (const level of ["warn", "error"] as const)
    vi.spyOn(console, level)
      .mockReset()
      .mockImplementation(() => {});
}
