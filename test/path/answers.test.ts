import { afterAll, beforeAll, expect, test } from "vitest";
import type { Connection } from "../../client/connection.js";
import { type Stack, startStack } from "../support/stack.js";
import { open, readSome, within } from "./support.js";

let stack: Stack;
const connections: Connection[] = [];

beforeAll(async () => {
  stack = await startStack({ originArgs: ["--simulated-rate", "500", "--simulated-answer", "100", "--slots", "16"] });
});
afterAll(async () => {
  for (const connection of connections) connection.close();
  await stack?.stop();
});

async function connected(to: Stack = stack): Promise<Connection> {
  const connection = await open(to);
  connections.push(connection);
  return connection;
}

const ask = (content: string) => [{ role: "user", content }] as const;

test("an answer streams from the origin through the edge, whole and counted", async () => {
  const connection = await connected();
  expect(connection.hello).toMatchObject({ engine: "simulated", frameBytesMax: 1_048_576, streamsMax: 64 });
  const response = connection.start(ask("Why is the sky blue?"));
  let text = "";
  let deltas = 0;
  for await (const delta of response) {
    text += delta;
    deltas++;
  }
  const { reason, usage } = await response.done;
  expect([reason, usage.completionTokens]).toEqual(["stop", 100]);
  expect(deltas).toBeGreaterThan(1);
  expect(text).toBe(response.text);
});

// Simulated answers are a function of the prompt: alone and in company they must be the same, and no two alike.
test("16 conversations at once each complete with their own answer", async () => {
  const questions = Array.from({ length: 16 }, (_, index) => ask(`question ${index}`));
  const each = await Promise.all(questions.map(() => connected()));
  const crowd = each.map((connection, index) => connection.start(questions[index] ?? []));
  const ends = await within(Promise.all(crowd.map(({ done }) => done)), "the end of 16 answers");
  expect(new Set(ends.map(({ reason }) => reason))).toEqual(new Set(["stop"]));
  const alone = await connected();
  const again = questions.map((question) => alone.start(question));
  await within(Promise.all(again.map(({ done }) => done)), "the end of the same 16 on one socket");
  expect(again.map(({ text }) => text)).toEqual(crowd.map(({ text }) => text));
  expect(new Set(crowd.map(({ text }) => text)).size).toBe(16);
});

test("a conversation cancelled mid-answer frees its slot for the one that waits", async () => {
  await withOneSlot(async (narrow) => {
    const connection = await connected(narrow);
    const endless = connection.start(ask("go on"));
    const shown = await readSome(endless, 3);
    const waiting = connection.start(ask("and I?"));
    await within(new Promise<void>((resolve) => (waiting.onQueued = () => resolve())), "a place in the queue");
    endless.cancel();
    expect((await within(endless.done, "the end of the cancelled answer")).reason).toBe("cancelled");
    expect(endless.text.startsWith(shown)).toBe(true);
    await readSome(waiting, 3);
  });
});

test("a socket closed mid-answer frees its slot for others", async () => {
  await withOneSlot(async (narrow) => {
    const leaving = await connected(narrow);
    await readSome(leaving.start(ask("go on")), 3);
    const waiting = (await connected(narrow)).start(ask("and I?"));
    await within(new Promise<void>((resolve) => (waiting.onQueued = () => resolve())), "a place in the queue");
    leaving.close();
    await readSome(waiting, 3);
  });
});

/** An origin that decodes one answer at a time, and answers that go on for as long as anyone listens. */
async function withOneSlot(check: (narrow: Stack) => Promise<void>): Promise<void> {
  const narrow = await startStack({ originArgs: ["--slots", "1", "--ctx", "1000000", "--simulated-answer", "1000000"] });
  try {
    await check(narrow);
  } finally {
    await narrow.stop();
  }
}

test("an origin killed mid-answer loses nothing that was shown, is named, and is found again when it is back", async () => {
  const doomed = await startStack({ originArgs: ["--simulated-answer", "100000", "--ctx", "200000"] });
  try {
    const connection = await connected(doomed);
    const response = connection.start(ask("go on"));
    const shown = await readSome(response, 3);
    await doomed.killOrigin();
    await expect(within(response.done, "the end of the answer")).rejects.toMatchObject({ code: "connection_lost", retry: "later" });
    expect(response.text.startsWith(shown)).toBe(true);
    expect((await connection.closed).message).toContain("1006");
    await expect(open(doomed)).rejects.toMatchObject({ code: "origin_unreachable", retry: "later" });
    await doomed.restartOrigin();
    await readSome((await connected(doomed)).start(ask("again")), 3);
  } finally {
    await doomed.stop();
  }
});

test("an origin that was told to stop takes nobody new, by name, and cuts what outlasts its deadline with a clear error", async () => {
  const stopping = await startStack({ originArgs: ["--simulated-answer", "100000", "--ctx", "200000", "--drain-ms", "1500"] });
  try {
    const response = (await connected(stopping)).start(ask("go on"));
    const shown = await readSome(response, 3);
    process.kill(stopping.originPid ?? 0, "SIGTERM");
    const refused = within(untilRefused(stopping), "a refusal");
    await expect(within(response.done, "the cut")).rejects.toMatchObject({ code: "draining", retry: "later" });
    expect(await refused).toBe("draining");
    expect(response.text.startsWith(shown)).toBe(true);
  } finally {
    await stopping.stop();
  }
});

/** The signal and a new connection race: connections are opened until one is refused. */
async function untilRefused(stopping: Stack): Promise<string> {
  for (;;) {
    try {
      (await open(stopping)).close();
    } catch (error) {
      return (error as { code: string }).code;
    }
  }
}
