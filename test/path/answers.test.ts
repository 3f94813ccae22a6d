import { afterAll, beforeAll, expect, test } from "vitest";
import type { Link } from "../../client/link.js";
import { type Stack, startStack } from "../support/stack.js";
import { linkTo, open, readSome, untilState, within } from "./support.js";

let stack: Stack;
const links: Link[] = [];

beforeAll(async () => {
  stack = await startStack({ originArgs: ["--simulated-rate", "500", "--simulated-answer", "100", "--slots", "16"] });
});
afterAll(async () => {
  for (const link of links) link.close();
  await stack?.stop();
});

function linked(to: Stack = stack): Link {
  const link = linkTo(to);
  links.push(link);
  return link;
}

const ask = (content: string) => [{ role: "user", content }] as const;

test("an answer streams from the origin through the edge, whole and counted", async () => {
  const link = linked();
  const response = link.start(ask("Why is the sky blue?"));
  let text = "";
  let deltas = 0;
  for await (const delta of response) {
    text += delta;
    deltas++;
  }
  expect(link.hello).toMatchObject({ engine: "simulated", frameBytesMax: 1_048_576, streamsMax: 64 });
  const { reason, usage } = await response.done;
  expect([reason, usage.completionTokens]).toEqual(["stop", 100]);
  expect(deltas).toBeGreaterThan(1);
  expect(text).toBe(response.text);
});

// Simulated answers are a function of the prompt: alone and in company they must be the same, and no two alike.
test("16 conversations at once each complete with their own answer", async () => {
  const questions = Array.from({ length: 16 }, (_, index) => ask(`question ${index}`));
  const crowd = questions.map((question) => linked().start(question));
  const ends = await within(Promise.all(crowd.map(({ done }) => done)), "the end of 16 answers");
  expect(new Set(ends.map(({ reason }) => reason))).toEqual(new Set(["stop"]));
  const alone = linked();
  const again = questions.map((question) => alone.start(question));
  await within(Promise.all(again.map(({ done }) => done)), "the end of the same 16 on one socket");
  expect(again.map(({ text }) => text)).toEqual(crowd.map(({ text }) => text));
  expect(new Set(crowd.map(({ text }) => text)).size).toBe(16);
});

test("a conversation cancelled mid-answer frees its slot for the one that waits", async () => {
  await withOneSlot(async (narrow) => {
    const link = linked(narrow);
    const endless = link.start(ask("go on"));
    const shown = await readSome(endless, 3);
    const waiting = link.start(ask("and I?"));
    await within(new Promise<void>((resolve) => (waiting.onQueued = () => resolve())), "a place in the queue");
    endless.cancel();
    expect((await within(endless.done, "the end of the cancelled answer")).reason).toBe("cancelled");
    expect(endless.text.startsWith(shown)).toBe(true);
    await readSome(waiting, 3);
  });
});

// A socket that closes cancels nothing; an answer that nobody comes back for ends with its grace.
test("an answer that is left frees its slot after its grace", async () => {
  await withOneSlot(async (narrow) => {
    const leaving = linked(narrow);
    await readSome(leaving.start(ask("go on"), { graceMs: 0 }), 3);
    const waiting = linked(narrow).start(ask("and I?"));
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

// The edge cannot tell a dead origin from one that is away; once another run has its place, the answer is continued there.
test("an origin killed mid-answer loses nothing that was shown, is named, and its successor goes on", async () => {
  const doomed = await startStack({ originArgs: ["--simulated-answer", "100000", "--ctx", "200000"] });
  try {
    const link = linked(doomed);
    const response = link.start(ask("go on"));
    const shown = await readSome(response, 3);
    const { epoch } = response;
    await doomed.killOrigin();
    await untilState(link, "waiting");
    expect(link.state).toMatchObject({ error: { code: "origin_unreachable", retry: "later" } });
    await expect(open(doomed)).rejects.toMatchObject({ code: "origin_unreachable", retry: "later" });
    expect(response.ended).toBe(false);
    const before = response.seq;
    await doomed.restartOrigin();
    await expect.poll(() => response.seq, { timeout: 15_000 }).toBeGreaterThan(before);
    expect(response.text.startsWith(shown)).toBe(true);
    expect([response.attempts, response.epoch === epoch]).toEqual([2, false]);
  } finally {
    await doomed.stop();
  }
});

test("an origin that was told to stop takes nobody new, by name, and hands off what outlasts its deadline", async () => {
  const stopping = await startStack({ originArgs: ["--simulated-answer", "100000", "--ctx", "200000", "--drain-ms", "1500"] });
  try {
    const response = linked(stopping).start(ask("go on"));
    const shown = await readSome(response, 3);
    process.kill(stopping.originPid ?? 0, "SIGTERM");
    expect(await within(untilRefused(stopping), "a refusal")).toBe("draining");
    await expect.poll(() => response.attempts, { timeout: 15_000 }).toBe(2);
    const before = response.seq;
    await stopping.killOrigin();
    await stopping.restartOrigin();
    await expect.poll(() => response.seq, { timeout: 15_000 }).toBeGreaterThan(before);
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
