import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { isKept, Keep } from "../../client/keep.js";
import { clientLimits } from "../../client/limits.js";
import { Op } from "../../shared/protocol.js";
import { answering } from "./support.js";

let page: EventTarget & { hidden: boolean };
let window: EventTarget;
let frames: (() => void)[];
let stored: Map<string, string>;
const storage = {
  getItem: (name: string) => stored.get(name) ?? null,
  setItem: (name: string, text: string) => void stored.set(name, text),
  removeItem: (name: string) => void stored.delete(name),
};

beforeEach(() => {
  frames = [];
  stored = new Map();
  page = Object.assign(new EventTarget(), { hidden: false });
  window = new EventTarget();
  vi.stubGlobal("document", page);
  vi.stubGlobal("addEventListener", window.addEventListener.bind(window));
  vi.stubGlobal("requestAnimationFrame", (frame: () => void) => frames.push(frame));
  vi.stubGlobal("cancelAnimationFrame", (number: number) => {
    frames[number - 1] = () => {};
  });
});
afterEach(() => void vi.unstubAllGlobals());

const show = (): void => {
  for (const frame of frames.splice(0)) frame();
};

// However often something changes within a display frame, it is written once, as it is then.
test("it writes once a frame", () => {
  const keep = new Keep("name", storage);
  const write = vi.spyOn(storage, "setItem");
  let value = 0;
  for (; value < 5; value++) keep.keep(() => ({ value }));
  expect(write).not.toHaveBeenCalled();
  show();
  expect([write.mock.calls, keep.read()]).toEqual([[["name", '{"value":5}']], { value: 5 }]);
  write.mockRestore();
});

// A hidden page draws no frames and may be discarded without a word; one that is left says so. What changed last is written.
test.each([
  ["is hidden", () => page.dispatchEvent(new Event("visibilitychange"))],
  ["goes", () => window.dispatchEvent(new Event("pagehide"))],
])("it writes when the page %s", (_, happen) => {
  const keep = new Keep("name", storage);
  let value = "early";
  keep.keep(() => value);
  show();
  value = "late";
  page.hidden = true;
  happen();
  expect(keep.read()).toBe("late");
  keep.forget();
  happen();
  expect(keep.read()).toBeUndefined();
});

// A page works on without a storage, with one that is full, and with what somebody else left there.
test("what cannot be kept is not", () => {
  const full = {
    ...storage,
    setItem: () => {
      throw new Error("quota");
    },
  };
  for (const place of [full, undefined]) {
    const keep = new Keep("name", place);
    keep.keep(() => 1);
    show();
    keep.forget();
    expect(keep.read()).toBeUndefined();
  }
  stored.set("name", "{broken");
  expect(new Keep("name", storage).read()).toBeUndefined();
});

test("what is too large takes the place of nothing", () => {
  const keep = new Keep("name", storage);
  keep.keep(() => "small");
  show();
  keep.keep(() => "x".repeat(clientLimits.keptCharsMax));
  show();
  expect(keep.read()).toBeUndefined();
});

// What another version of the page left, or a hand has changed, is not taken for an answer.
test("an answer that was kept is known by its shape", () => {
  const { response, join, hear } = answering();
  join();
  hear([Op.STARTED, 1, "answer-7", 40, 2, { waitMs: 70 }], [Op.TOKENS, 1, 1, "a", 0, [7]]);
  const kept = JSON.parse(JSON.stringify(response.kept()));
  expect(isKept(kept)).toBe(true);
  const changes: Record<string, unknown>[] = [
    { version: 2 },
    { asked: undefined },
    { asked: { ...kept.asked, messages: [["user"]] } },
    { asked: { ...kept.asked, options: {} } },
    { home: { ...kept.home, url: "http://elsewhere.test" } },
    { home: 5 },
    { text: 5 },
    { ids: ["7"] },
    { seq: -1 },
    { attempt: "1" },
    { reading: null },
    { truncatedAt: "1" },
  ];
  for (const change of changes) expect(isKept({ ...kept, ...change }), JSON.stringify(change)).toBe(false);
  for (const other of [undefined, null, 5, "x", []]) expect(isKept(other)).toBe(false);
});
