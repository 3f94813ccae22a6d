import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { clientLimits } from "../../../client/limits.js";
import { Memory, type Said } from "../../../client/widget/memory.js";
import { Op } from "../../../shared/protocol.js";
import { answering } from "../support.js";

let window: EventTarget;
let stored: Map<string, string>;

beforeEach(() => {
  window = new EventTarget();
  stored = new Map();
  vi.stubGlobal("document", Object.assign(new EventTarget(), { hidden: false }));
  vi.stubGlobal("addEventListener", window.addEventListener.bind(window));
  vi.stubGlobal("requestAnimationFrame", () => 1);
  vi.stubGlobal("cancelAnimationFrame", () => {});
  vi.stubGlobal("sessionStorage", {
    getItem: (name: string) => stored.get(name) ?? null,
    setItem: (name: string, text: string) => void stored.set(name, text),
    removeItem: (name: string) => void stored.delete(name),
  });
});
afterEach(() => void vi.unstubAllGlobals());

const leave = (): boolean => window.dispatchEvent(new Event("pagehide"));

test("a page that is loaded anew finds its turns and the answer that ran", () => {
  const before = new Memory();
  const turns: Said[] = [
    { question: "One?", text: "Yes.", reason: "stop" },
    { question: "Two?", text: "", error: { code: "overloaded", message: "busy" } },
  ];
  const { response, join, hear } = answering();
  join();
  before.keepTurns(turns);
  before.keepAnswer(response);
  hear([Op.TOKENS, 1, 1, "late", 0, [1]]);
  leave();
  const after = new Memory();
  expect(after.turns()).toEqual(turns);
  expect(after.answer()).toMatchObject({ text: "late", seq: 1, home: { token: "token-1" } });
  before.forgetAnswer();
  leave();
  expect([after.answer(), after.turns().length]).toEqual([undefined, 2]);
  before.forget();
  leave();
  expect(after.turns()).toEqual([]);
});

// Storage is small: what was said last is worth more than what was said first.
test("only as many of the last turns as fit are kept", () => {
  const memory = new Memory();
  const turns = Array.from({ length: 5 }, (_, index): Said => ({ question: `${index}?`, text: "x".repeat(clientLimits.keptCharsMax / 3) }));
  memory.keepTurns(turns);
  leave();
  expect(memory.turns().map(({ question }) => question)).toEqual(["3?", "4?"]);
});

test.each([
  ["nothing", undefined],
  ["no list", '{"question":"x"}'],
  ["no turns", "[5]"],
  ["a turn without its text", '[{"question":"x"}]'],
  ["an error that is none of ours", '[{"question":"x","text":"","error":{"code":"oops","message":"m"}}]'],
])("%s is remembered as nothing", (_, text) => {
  if (text !== undefined) stored.set("millrace.turns", text);
  stored.set("millrace.answer", text ?? "null");
  expect([new Memory().turns(), new Memory().answer()]).toEqual([[], undefined]);
});
