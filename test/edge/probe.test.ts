import { expect, test, vi } from "vitest";
import { edgeLimits } from "../../edge/limits.js";
import { lastStates, markUnsure, probe, probeAfresh } from "../../edge/origins/probe.js";
import type { Origin } from "../../edge/origins/registry.js";
import { isolateTests, readiness, stillClock } from "./support.js";

isolateTests();

let made = 0;
/** An origin that no earlier test has asked. */
const newOrigin = (): Origin => ({ name: "a", url: `http://${++made}.probed.test` });

/** What is asked of the network, answered by `answer`. */
function network(answer: (init: RequestInit) => Response | Promise<Response>): string[] {
  const asked: string[] = [];
  vi.stubGlobal("fetch", async (url: string, init: RequestInit) => {
    asked.push(url);
    return answer(init);
  });
  return asked;
}

test.each([
  ["ready", 200],
  ["loading", 503],
  ["draining", 503],
] as const)("an origin that says it is %s is", async (state, status) => {
  const asked = network(() => Response.json({ state, epoch: "e-1" }, { status }));
  const origin = newOrigin();
  expect(await probe(origin)).toMatchObject({ state, epoch: "e-1" });
  expect(asked).toEqual([`${origin.url}/readyz`]);
});

test("an answer is taken for true for 2 s, and no longer", async () => {
  const clock = stillClock();
  const asked = network(() => readiness("ready", `e-${asked.length}`));
  const origin = newOrigin();
  await probe(origin);
  clock.advance(1_999);
  expect(await probe(origin)).toMatchObject({ epoch: "e-1" });
  clock.advance(1);
  expect(await probe(origin)).toMatchObject({ epoch: "e-2" });
  expect(asked.length).toBe(2);
});

test("silence is remembered for half a second, with the epoch that was known before", async () => {
  const clock = stillClock();
  let alive = true;
  const asked = network(() => {
    if (alive) return readiness("ready", "e-1");
    throw new TypeError("connection refused");
  });
  const origin = newOrigin();
  await probe(origin);
  alive = false;
  expect(await probeAfresh(origin)).toMatchObject({ state: "unreachable", epoch: "e-1" });
  alive = true;
  clock.advance(499);
  expect(await probe(origin)).toMatchObject({ state: "unreachable" });
  clock.advance(1);
  expect(await probe(origin)).toMatchObject({ state: "ready" });
  expect(asked.length).toBe(3);
});

test.each([
  ["HTML", () => new Response("<h1>hello</h1>")],
  ["JSON that is no object", () => Response.json(null)],
  ["a state of nobody's", () => readiness("happy", "e-1")],
  ["no epoch", () => Response.json({ state: "ready" })],
  ["an empty epoch", () => readiness("ready", "")],
  ["an epoch of 65 characters", () => readiness("ready", "e".repeat(65))],
  ["a kilobyte and more", () => Response.json({ state: "ready", epoch: "e-1", padding: "x".repeat(1_024) })],
  ["a redirect", () => new Response(null, { status: 302, headers: { location: "http://elsewhere.test" } })],
])("an origin that answers with %s is unreachable", async (_, answer) => {
  network(answer);
  expect(await probe(newOrigin())).toMatchObject({ state: "unreachable", epoch: undefined });
});

test("an origin that does not answer is given up after a second, also half-way through its answer", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  const aborted = ({ signal }: RequestInit): Promise<never> =>
    new Promise((_, reject) => signal?.addEventListener("abort", () => reject(new Error("aborted"))));
  const answers = [aborted, (init: RequestInit) => new Response(new ReadableStream({ pull: () => aborted(init) }))];
  for (const answer of answers) {
    network(answer);
    const probed = probe(newOrigin());
    await vi.advanceTimersByTimeAsync(edgeLimits.probeAnswerMs);
    expect(await probed).toMatchObject({ state: "unreachable" });
  }
  expect(vi.getTimerCount()).toBe(0);
});

// workerd lets no request wait for another's promise.
test("requests that come at once ask each for itself", async () => {
  const asked = network(() => readiness("ready", "e-1"));
  const origin = newOrigin();
  await Promise.all([probe(origin), probe(origin)]);
  expect(asked.length).toBe(2);
});

test("an answer that was long on its way does not take the place of a younger one", async () => {
  const clock = stillClock();
  const waiting: ((response: Response) => void)[] = [];
  network(() => new Promise((resolve) => waiting.push(resolve)));
  const origin = newOrigin();
  const older = probe(origin);
  clock.advance(10);
  const younger = probe(origin);
  waiting[1]?.(readiness("ready", "e-2"));
  expect(await younger).toMatchObject({ epoch: "e-2" });
  waiting[0]?.(readiness("ready", "e-1"));
  expect(await older).toMatchObject({ epoch: "e-1" });
  expect(await probe(origin)).toMatchObject({ epoch: "e-2" });
});

test("what was seen to be otherwise is asked for again, however fresh", async () => {
  const asked = network(() => readiness("ready", "e-1"));
  const origin = newOrigin();
  await probe(origin);
  markUnsure(origin);
  await probe(origin);
  await probe(origin);
  expect(asked.length).toBe(2);
});

test("no more origins are remembered than may be configured", async () => {
  network(() => readiness("ready", "e-1"));
  const origins = Array.from({ length: edgeLimits.originsMax + 1 }, newOrigin);
  for (const origin of origins) await probe(origin);
  expect(lastStates(origins.slice(0, 1))).toBeUndefined();
  expect(lastStates(origins.slice(1, 2))).toEqual({ a: "ready" });
});
