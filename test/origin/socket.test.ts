/** What only a real socket shows: refused upgrades, frames that are too large, readers that are too slow, and plain HTTP. */
import { request } from "node:http";
import { afterEach, describe, expect, test } from "vitest";
import { WebSocket } from "ws";
import { Origin, type OriginOptions } from "../../origin/origin.js";
import { SimulatedInference, simulatedVocabulary } from "../../origin/simulated.js";
import { type Connection, listen, type Server } from "../../origin/socket.js";
import { encode } from "../../shared/codec.js";
import { limits } from "../../shared/limits.js";
import { Op, subprotocol, type Tokens } from "../../shared/protocol.js";
import { claims, edge, originName, readAnswer, SocketClient, sign, withDeadline } from "./support.js";

const closing: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
});

interface Reply {
  status: number | undefined;
  headers: Record<string, unknown>;
  body: string;
}

function get(port: number, path: string, headers: Record<string, string> = {}, method = "GET"): Promise<Reply> {
  const reply = new Promise<Reply>((resolve, reject) => {
    const sent = request({ host: "127.0.0.1", port, path, headers, method, agent: false }, (response) => {
      let body = "";
      response.setEncoding("utf8").on("data", (chunk) => {
        body += chunk;
      });
      response.on("end", () => resolve({ status: response.statusCode, headers: response.headers, body }));
    });
    sent.on("upgrade", (response, socket) => {
      socket.destroy();
      resolve({ status: response.statusCode, headers: response.headers, body: "" });
    });
    sent.on("error", reject).end();
  });
  return withDeadline(reply, `an answer to ${path}`);
}

async function upgrade(port: number, assertion: string | undefined, protocols: string | undefined = subprotocol): Promise<Reply> {
  return get(port, "/v1/stream", {
    connection: "upgrade",
    upgrade: "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    ...(protocols === undefined ? {} : { "sec-websocket-protocol": protocols }),
    ...(assertion === undefined ? {} : { authorization: `Bearer ${assertion}` }),
  });
}

const errorOf = ({ body }: Reply): { code: string; message: string } =>
  (JSON.parse(body) as { error: { code: string; message: string } }).error;

async function readiness(origin: Origin): Promise<[number | undefined, string]> {
  const { status, body } = await get(origin.port, "/readyz");
  const { state, epoch } = JSON.parse(body) as { state: string; epoch: string };
  expect(epoch).toMatch(/^[\w-]{36}$/);
  return [status, state];
}

type Load = OriginOptions["load"];

const textOf = (client: SocketClient, stream: number): string =>
  (client.received.filter(([op, number]) => op === Op.TOKENS && number === stream) as Tokens[]).map((message) => message[3]).join("");

async function metric(origin: Origin, name: string): Promise<number> {
  const { body } = await get(origin.port, "/metrics");
  return Number(new RegExp(`^${name} (\\d+)`, "m").exec(body)?.[1]);
}

function simulated(tokensPerSecond: number, answerTokens: number, contextTokens = 2_048, slots = 4): Load {
  const inference = new SimulatedInference({ tokensPerSecond, answerTokens, slots, contextTokens });
  return async () => ({ inference, vocabulary: simulatedVocabulary() });
}

async function listenWith(load: Load = simulated(2_000, 30)): Promise<Origin> {
  const origin = await Origin.listen({
    host: "127.0.0.1",
    port: 0,
    name: originName,
    edgeKey: edge.publicKey,
    drainMs: 5_000,
    load,
    log: () => {},
  });
  closing.push(() => origin.drain());
  return origin;
}

async function ready(): Promise<Origin> {
  const origin = await listenWith();
  await origin.load();
  return origin;
}

describe("an upgrade", () => {
  test("with the edge's word and our subprotocol is accepted, without extensions", async () => {
    const { port } = await ready();
    const { status, headers } = await upgrade(port, await sign(claims()));
    expect([status, headers["sec-websocket-protocol"], headers["sec-websocket-extensions"]]).toEqual([101, "millrace.v1", undefined]);
    const client = await SocketClient.connect(port, await sign(claims()));
    closing.unshift(() => client.disconnect());
    expect(client.extensions).toBe("");
  });

  test.each([
    ["unsigned", async () => undefined, /there is none/],
    ["expired", async () => sign(claims({ iat: 1_700_000_000, exp: 1_700_000_010 })), /expired/],
    ["for another audience", async () => sign(claims({ aud: "origin-9" })), /aud is "origin-9", but this origin is "origin-test"/],
    ["a forgery", async () => `${(await sign(claims())).slice(0, -8)}AAAAAAAA`, /signature/],
  ])("%s is answered 401 assertion_invalid", async (_, assertion, sentence) => {
    const { port } = await ready();
    const reply = await upgrade(port, await assertion());
    expect([reply.status, reply.headers["content-type"]]).toEqual([401, "application/json"]);
    expect(errorOf(reply)).toEqual({ code: "assertion_invalid", message: expect.stringMatching(sentence) });
  });

  // An edge that takes this origin for an earlier run of it would promise its clients answers that are gone.
  test("for another run of the origin is answered epoch_changed", async () => {
    const { port } = await ready();
    const reply = await upgrade(port, await sign(claims({ epoch: "an earlier run" })));
    expect([reply.status, errorOf(reply)]).toEqual([
      503,
      { code: "epoch_changed", message: expect.stringContaining("not an earlier run") },
    ]);
  });

  test("brings what HELLO tells the client of its session", async () => {
    const { port } = await ready();
    const upgrading = { redeemMs: 1, chooseMs: 2, connectMs: 3 };
    const client = await SocketClient.connect(port, await sign(claims({ resume: "a token", upgrade: upgrading })));
    closing.unshift(() => client.disconnect());
    expect((await client.nextOf(Op.HELLO))[2]).toMatchObject({
      resumeToken: "a token",
      failoverWaitMs: limits.failoverWaitMs,
      upgrade: upgrading,
    });
  });

  // Who it is comes before everything else: a stranger learns nothing of versions.
  test("of an unknown version is answered 426 with what was offered", async () => {
    const { port } = await ready();
    const reply = await upgrade(port, await sign(claims()), "millrace.v9, ticket.x");
    expect(reply.status).toBe(426);
    expect(errorOf(reply)).toEqual({
      code: "version_unsupported",
      message: 'the subprotocols offered are ["millrace.v9","ticket.x"]; this origin speaks millrace.v1',
    });
    expect(errorOf(await upgrade(port, undefined, "millrace.v9")).code).toBe("assertion_invalid");
  });

  test("waits for the model: 503 model_loading until then, and a time to come back", async () => {
    let finish!: () => void;
    const loaded = new Promise<void>((resolve) => {
      finish = resolve;
    });
    const inference = new SimulatedInference({ tokensPerSecond: 2_000, answerTokens: 30, slots: 4, contextTokens: 2_048 });
    const origin = await listenWith(async () => {
      await loaded;
      return { inference, vocabulary: simulatedVocabulary() };
    });
    const loading = origin.load();
    const reply = await upgrade(origin.port, await sign(claims()));
    expect([reply.status, errorOf(reply).code, reply.headers["retry-after"]]).toEqual([503, "model_loading", "1"]);
    expect(await get(origin.port, "/healthz")).toMatchObject({ status: 200, body: "ok\n" });
    expect(await readiness(origin)).toEqual([503, "loading"]);
    finish();
    await loading;
    expect(await readiness(origin)).toEqual([200, "ready"]);
    expect((await upgrade(origin.port, await sign(claims()))).status).toBe(101);
  });

  test("is answered 503 draining while answers finish", async () => {
    // An answer that takes longer than this test, unless it is cancelled.
    const origin = await listenWith(simulated(20, 1_000));
    await origin.load();
    const client = await SocketClient.connect(origin.port, await sign(claims()));
    client.send([Op.START, 1, [["user", "hi"]], { maxTokens: 1_000 }]);
    await client.nextOf(Op.STARTED, 1);
    const drained = origin.drain();
    expect(errorOf(await upgrade(origin.port, await sign(claims()))).code).toBe("draining");
    // Who had an answer here may come back for it.
    const back = await SocketClient.connect(origin.port, await sign(claims({ returning: true })));
    expect((await back.nextOf(Op.GOAWAY))[3]).toBe("draining");
    back.disconnect();
    expect(await readiness(origin)).toEqual([503, "draining"]);
    client.send([Op.CANCEL, 1]);
    await client.nextOf(Op.DONE, 1);
    client.disconnect();
    await drained;
    await expect(get(origin.port, "/healthz")).rejects.toThrow(/ECONNREFUSED/);
  });
});

describe("plain HTTP", () => {
  test("metrics tell what was answered, under the conventions' names", async () => {
    const { port } = await ready();
    const client = await SocketClient.connect(port, await sign(claims()));
    closing.unshift(() => client.disconnect());
    client.send([Op.START, 1, [["user", "hi"]], {}]);
    const { promptTokens, seq } = await readAnswer(client, 1);
    const { body, headers } = await get(port, "/metrics");
    expect(headers["content-type"]).toMatch(/^text\/plain; version=0\.0\.4/);
    const lines = body.split("\n");
    expect(lines).toEqual(
      expect.arrayContaining([
        'gen_ai_server_time_to_first_token_seconds_count{class="chat"} 1',
        'gen_ai_server_time_per_output_token_seconds_count{class="chat"} 1',
        'gen_ai_server_request_duration_seconds_count{class="chat"} 1',
        `millrace_prompt_tokens_total ${promptTokens}`,
        `millrace_generation_tokens_total ${seq}`,
        'millrace_request_success_total{finished_reason="stop"} 1',
        "millrace_num_requests_running 0",
        "millrace_num_requests_waiting 0",
        "millrace_sockets_open 1",
      ]),
    );
    expect(body).toContain("nodejs_eventloop_lag_p99_seconds");
  });

  test.each([
    ["GET", "/nothing", 404, "not_found", "there is no GET /nothing here"],
    ["POST", "/healthz", 404, "not_found", "there is no POST /healthz here"],
    ["GET", "/v1/stream", 426, "version_unsupported", "this route takes a WebSocket upgrade with the subprotocol millrace.v1"],
  ])("%s %s is refused in JSON", async (method, path, status, code, message) => {
    const { port } = await ready();
    const reply = await get(port, path, {}, method);
    expect([reply.status, errorOf(reply)]).toEqual([status, { code, message }]);
  });
});

describe("a socket", () => {
  // The platform cuts it off before any handler runs, so there is no code; the origin lives.
  test.each([limits.frameBytesMax + 1, 10_000_000])("that sends a frame of %i bytes ends as 1006", async (bytes) => {
    const { port } = await ready();
    const client = await SocketClient.connect(port, await sign(claims()));
    await client.nextOf(Op.HELLO);
    client.sendRaw(new Uint8Array(bytes));
    expect((await withDeadline(client.closed, "the end")).code).toBe(1006);
    expect((await get(port, "/healthz")).status).toBe(200);
  });

  // A frame of exactly the limit is read, and refused only for what it says.
  test("may send a frame of frameBytesMax", async () => {
    const { port } = await ready();
    const client = await SocketClient.connect(port, await sign(claims()));
    await client.nextOf(Op.HELLO);
    const overhead = encode([Op.START, 1, [["user", "x".repeat(70_000)]], {}]).length - 70_000;
    client.send([Op.START, 1, [["user", "x".repeat(limits.frameBytesMax - overhead)]], {}]);
    expect((await client.nextOf(Op.ERROR, 1))[2]).toBe("context_exceeded");
    client.disconnect();
  });

  // A client that stops reading: all that was taken arrives in order once it reads again, then the last message, then the close code.
  test("that reads too slowly loses nothing of what was taken", async () => {
    const frame = 65_536;
    let taken = 0;
    const connection = (send: (bytes: Uint8Array) => boolean, close: () => void): Connection => ({
      open: () => {
        while (send(new Uint8Array(frame).fill(taken))) taken++;
        close();
      },
      receive: () => {},
      drained: () => {},
      closed: () => {},
    });
    const server = (await listen("127.0.0.1", 0, {
      admit: () => ({
        connect: (socket) =>
          connection(
            (bytes) => socket.send(bytes),
            () => socket.close(4_503, "outbox_overflow", Uint8Array.of(1, 2, 3)),
          ),
      }),
      http: () => ({ status: 404, type: "text/plain", body: "", retryAfterMs: 0 }),
    })) as Server;
    closing.push(() => server.close());
    const socket = new WebSocket(`ws://127.0.0.1:${server.port}/v1/stream`, [subprotocol]);
    const got: Buffer[] = [];
    socket.on("message", (data: Buffer) => got.push(data));
    const closed = new Promise<[number, string]>((resolve) => socket.on("close", (code, reason) => resolve([code, reason.toString()])));
    socket.on("upgrade", () => {
      socket.pause();
      setImmediate(() => socket.resume());
    });
    expect(await withDeadline(closed, "the close frame")).toEqual([4_503, "outbox_overflow"]);
    expect(got.pop()).toEqual(Buffer.of(1, 2, 3));
    expect(got.map((data) => [data.length, data[0]])).toEqual(Array.from({ length: taken }, (_, index) => [frame, index & 0xff]));
    expect(taken * frame).toBeGreaterThan(limits.outboxBytesMax / 2);
    expect(server.sockets).toEqual({ open: 0, backpressured: 0 });
  });

  // A client that stops reading costs the others nothing and the origin little: its tokens wait in the logs, and once it reads it has them all.
  test("that stops reading has everything once it reads again", async () => {
    const origin = await listenWith(simulated(20_000, 100_000, 120_000, 40));
    await origin.load();
    const word = { limits: { streamsMax: 64, tokensMax: 100_000 } };
    const slow = await SocketClient.connect(origin.port, await sign(claims(word)));
    const streams = Array.from({ length: 32 }, (_, index) => index + 1);
    for (const stream of streams) slow.send([Op.START, stream, [["user", "hi"]], { maxTokens: 30_000, tokenIds: true }]);
    await slow.nextOf(Op.TOKENS, 1);
    slow.pause();
    const other = await SocketClient.connect(origin.port, await sign(claims({ ...word, sub: "user-2" })));
    closing.unshift(() => other.disconnect());
    // The kernel's buffers are full, and nothing more is given to the socket.
    await expect.poll(async () => metric(origin, "millrace_sockets_backpressured"), { timeout: 20_000 }).toBe(1);
    other.send([Op.START, 1, [["user", "hi"]], { maxTokens: 30_000 }]);
    const whole = await readAnswer(other, 1);
    slow.resume();
    for (const stream of streams) await slow.nextOf(Op.DONE, stream);
    for (const stream of streams) expect(textOf(slow, stream)).toBe(whole.text);
    expect(await metric(origin, "millrace_sockets_backpressured")).toBe(0);
    slow.disconnect();
  }, 60_000);

  test("cannot share a port with another origin", async () => {
    const { port } = await ready();
    const again = Origin.listen({
      host: "127.0.0.1",
      port,
      name: "b",
      edgeKey: edge.publicKey,
      drainMs: 0,
      load: () => Promise.reject(),
      log: () => {},
    });
    await expect(again).rejects.toThrow(new RegExp(`port ${port} on 127.0.0.1 cannot be had.*--port N`));
  });
});
