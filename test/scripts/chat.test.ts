import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Op, type Resume } from "../../shared/protocol.js";
import { root } from "../support/edgeProcess.js";
import { ScriptedEdge } from "../support/scriptedEdge.js";

let edge: ScriptedEdge;
let child: ChildProcess | undefined;

beforeEach(async () => {
  edge = await ScriptedEdge.start();
});
afterEach(async () => {
  child?.kill("SIGKILL");
  await edge.stop();
});

interface Ended {
  status: number | null;
  out: string;
  error: string;
}

/** Starts `npm run chat`'s script as a terminal would. */
function chat(args: string[], input?: string): { ended: Promise<Ended>; interrupt(): void; printed(text: string): Promise<void> } {
  const started = spawn(process.execPath, ["--import", "tsx", "scripts/chat.ts", ...args], { cwd: root });
  child = started;
  const [out, error]: string[][] = [[], []];
  started.stdout.on("data", (data) => out?.push(String(data)));
  started.stderr.on("data", (data) => error?.push(String(data)));
  started.stdin.end(input);
  return {
    ended: once(started, "close").then(([status]) => ({ status, out: (out ?? []).join(""), error: (error ?? []).join("") })),
    interrupt: () => started.kill("SIGINT"),
    printed: async (text) => {
      while (!out?.join("").includes(text)) await once(started.stdout, "data");
    },
  };
}

test("the answer goes to stdout, the rest to stderr", async () => {
  const running = chat([
    "--edge",
    edge.url,
    "--max-tokens",
    "9",
    "--temperature",
    "0",
    "--seed",
    "7",
    "--system",
    "Be brief.",
    "Why",
    "blue?",
  ]);
  const { peer, stream, messages, options } = await edge.question();
  expect(messages).toEqual([
    ["system", "Be brief."],
    ["user", "Why blue?"],
  ]);
  expect(options).toMatchObject({ maxTokens: 9, temperature: 0, seed: 7, overflow: "drop_oldest" });
  peer.answer(stream, ["Light ", "\u001b[31mscatters."]);
  const { status, out, error } = await running.ended;
  expect(out).toBe("Light [31mscatters.\n");
  expect(error).toMatch(/SmolLM2-135M-Instruct on http:.*2 tokens, first after \d+ ms/s);
  expect(status).toBe(0);
});

test("--json prints each frame as it was decoded", async () => {
  const running = chat(["--edge", edge.url, "--json", "?"]);
  const { peer, stream } = await edge.question();
  peer.answer(stream, ["Yes."]);
  const lines = (await running.ended).out.trimEnd().split("\n");
  const frames = lines.map((line) => JSON.parse(line) as unknown[]);
  expect(frames.map(([op]) => op)).toEqual([Op.HELLO, Op.STARTED, Op.TOKENS, Op.DONE]);
  expect(frames[2]).toEqual([Op.TOKENS, 1, 1, "Yes.", 0, [101]]);
});

test("Ctrl-C stops the answer and keeps what came", async () => {
  const running = chat(["--edge", edge.url, "?"]);
  const { peer, stream } = await edge.question();
  peer.tokens(stream, ["half"]);
  await running.printed("half");
  running.interrupt();
  await peer.next(Op.CANCEL);
  peer.done(stream, ["half"], "cancelled");
  expect(await running.ended).toMatchObject({ status: 130, out: "half\n", error: expect.stringContaining("stopped") });
});

test("lines of a pipe are a conversation, which survives a failed answer", async () => {
  const running = chat(["--edge", edge.url], "One?\n\nTwo?\n");
  const first = await edge.question(1);
  first.peer.started(first.stream);
  first.peer.tokens(first.stream, ["Half"]);
  first.peer.send([Op.ERROR, first.stream, "internal", "the engine failed", 0]);
  const second = await edge.question(2);
  expect(second.messages).toEqual([
    ["user", "One?"],
    ["assistant", "Half"],
    ["user", "Two?"],
  ]);
  second.peer.answer(second.stream, ["Done."]);
  expect(await running.ended).toMatchObject({
    status: 0,
    out: "Half\nDone.\n",
    error: expect.stringContaining("internal: the engine failed"),
  });
});

// A person at a terminal sees one answer, and a line for what became of the connection where that takes its time.
test("an answer survives its socket", async () => {
  const running = chat(["--edge", edge.url, "?"]);
  const { peer, stream } = await edge.question();
  peer.started(stream);
  peer.tokens(stream, ["Once ", "upon "]);
  await running.printed("upon");
  edge.script.onOpen = (refused) => refused.refuse("origin_unreachable", "no origin answers");
  peer.socket.terminate();
  await edge.connected(2);
  edge.script = {};
  const next = await edge.connected(3);
  const [, resumed, , response] = await next.next<Resume>(Op.RESUME);
  next.send([Op.RESUMED, resumed, response, 3, 12, 0]);
  next.tokens(resumed, ["a time."], 3);
  next.done(resumed, ["Once ", "upon ", "a time."]);
  expect(await running.ended).toMatchObject({
    status: 0,
    out: "Once upon a time.\n",
    error: expect.stringMatching(/origin_unreachable: no origin answers; trying again.*connected again/s),
  });
});

test("a refusal is a sentence and status 1", async () => {
  const running = chat(["--edge", edge.url, "?"]);
  const { peer, stream } = await edge.question();
  peer.send([Op.ERROR, stream, "context_exceeded", "9000 tokens are over 2048", 0]);
  expect(await running.ended).toMatchObject({
    status: 1,
    out: "",
    error: expect.stringContaining("context_exceeded: 9000 tokens are over 2048\n"),
  });
});

test.each([
  [["--seed", "x"], '--seed is "x", not an integer from 0'],
  [["--edge", "ftp://x"], '--edge is "ftp://x", not an http: or https: address'],
  [["--verbose"], "--verbose"],
])("%j is refused with the usage", async (args, sentence) => {
  const ended = await chat(args).ended;
  expect(ended).toMatchObject({ status: 2, out: "", error: expect.stringContaining(sentence) });
  expect(ended.error).toContain("npm run chat -- [options] [question]");
});
