/** Who hears which event, without an engine. */
import { afterEach, expect, test, vi } from "vitest";
import type { EngineEvent } from "../../engine/binding/events.js";
import { Listeners } from "../../engine/binding/listeners.js";

const started = (request: number): EngineEvent => ({ kind: "started", request });
const finished = (request: number): EngineEvent => ({
  kind: "finished",
  request,
  seq: 0,
  reason: "stop",
  queueUs: 0,
  prefillUs: 0,
  decodeUs: 0,
  promptTokens: 1,
  cachedTokens: 0,
  error: "",
});

afterEach(() => void vi.restoreAllMocks());

test("each request is heard by its own listener, until its end", () => {
  const heard: string[] = [];
  const listeners = new Listeners(() => {});
  for (const request of [1, 2]) listeners.add(request, (event) => heard.push(`${request} ${event.kind}`));
  for (const event of [started(2), started(1), finished(2), started(2), finished(1), started(3)]) listeners.tell(event);
  expect(heard).toEqual(["2 started", "1 started", "2 finished", "1 finished"]);
});

test("it is busy from the first listener to the end of the last", () => {
  const busy: boolean[] = [];
  const listeners = new Listeners((each) => busy.push(each));
  listeners.add(1, () => {});
  listeners.add(2, () => {});
  listeners.tell(finished(1));
  expect(busy).toEqual([true]);
  listeners.tell(finished(2));
  listeners.tell(finished(2));
  expect(busy).toEqual([true, false]);
});

test("who waits for the end of all is told after the last listener was", async () => {
  const order: string[] = [];
  const listeners = new Listeners(() => {});
  await listeners.idle();
  listeners.add(1, (event) => order.push(event.kind));
  const idle = listeners.idle().then(() => order.push("idle"));
  listeners.tell(started(1));
  listeners.tell(finished(1));
  await idle;
  expect(order).toEqual(["started", "finished", "idle"]);
});

// Thrown through the addon it would be a warning, and take the step's other events with it.
test("what one listener throws reaches the process, and the other listeners hear on", () => {
  const thrown: (() => void)[] = [];
  vi.spyOn(globalThis, "setImmediate").mockImplementation(((work: () => void) => thrown.push(work)) as never);
  const heard: string[] = [];
  const listeners = new Listeners(() => {});
  listeners.add(1, () => {
    throw new Error("from a listener");
  });
  listeners.add(2, (event) => heard.push(event.kind));
  for (const event of [started(1), started(2), finished(1), finished(2)]) listeners.tell(event);
  expect(heard).toEqual(["started", "finished"]);
  expect(thrown).toHaveLength(2);
  for (const work of thrown) expect(work).toThrow("from a listener");
});
