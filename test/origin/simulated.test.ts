/** The simulated inference keeps the seam's contract: it is what everything above is tested with. */
import { afterEach, expect, test } from "vitest";
import type { InferenceEnd, InferenceHandle, InferenceListener } from "../../origin/inference.js";
import { loadSimulated, SimulatedInference, simulatedAnswer, simulatedVocabulary } from "../../origin/simulated.js";
import { greedy } from "../../scripts/bench/greedy.js";
import { defaultModelPath } from "../../scripts/setup/model.js";
import { serviceClasses } from "../../shared/classes.js";
import { limits } from "../../shared/limits.js";
import { withDeadline } from "./support.js";

let inference: SimulatedInference;
afterEach(() => inference?.close());

const open = (changes: Partial<ConstructorParameters<typeof SimulatedInference>[0]> = {}): void => {
  inference = new SimulatedInference({ tokensPerSecond: 5_000, answerTokens: 50, slots: 2, contextTokens: 10_000, ...changes });
};

const request = {
  maxTokens: 1_000,
  ...greedy,
  minTokens: 0,
  ignoreEos: false,
  logitBias: {},
  logprobs: undefined as number | undefined,
  format: undefined,
  continueIds: new Int32Array(),
  class: "chat" as const,
  deadlines: serviceClasses.chat,
  tenant: "tenant-1",
  tenantWeight: 1,
};

interface Run {
  handle: InferenceHandle;
  events: string[];
  text: () => string;
  ids: number[];
  end: Promise<InferenceEnd>;
  firstTokens: Promise<void>;
  /** Called within the call that brings its last token. */
  onTokens?: () => void;
}

function run(prompt: number[], changes: Partial<typeof request> = {}): Run {
  const events: string[] = [];
  const ids: number[] = [];
  let text = "";
  let settle!: (end: InferenceEnd) => void;
  let fail!: (error: Error) => void;
  let begin!: () => void;
  const firstTokens = new Promise<void>((resolve) => {
    begin = resolve;
  });
  const end = new Promise<InferenceEnd>((resolve, reject) => {
    settle = resolve;
    fail = reject;
  });
  const listener: InferenceListener = {
    queued: (place) => events.push(`queued ${place}`),
    tokens: ({ seq, text: piece, ids: said, ends }) => {
      expect(ends.at(-1)).toBe(Buffer.byteLength(piece));
      expect(seq).toBe(ids.length + said.length);
      ids.push(...said);
      events.push(`tokens ${seq}`);
      text += piece;
      begin();
      if (seq === changes.maxTokens) one.onTokens?.();
    },
    finished: (ending) => {
      events.push(`finished ${ending.reason}`);
      settle(ending);
    },
    failed: (why) => {
      events.push("failed");
      fail(new Error(why));
    },
  };
  const handle = inference.submit({ ...request, ...changes, prompt: Int32Array.from(prompt) }, listener);
  expect(events).toEqual([]);
  const one: Run = {
    handle,
    events,
    text: () => text,
    ids,
    end: withDeadline(end, "the end of an answer"),
    firstTokens: withDeadline(firstTokens, "tokens"),
  };
  return one;
}

test("the same prompt has the same answer, another prompt another", async () => {
  open();
  const runs = [run([1, 2, 3]), run([1, 2, 3]), run([1, 2, 4])];
  const ends = await Promise.all(runs.map(({ end }) => end));
  expect(ends.map(({ seq, reason }) => [seq, reason])).toEqual([
    [50, "stop"],
    [50, "stop"],
    [50, "stop"],
  ]);
  const [first, second, third] = runs.map(({ text }) => text());
  expect(first).toBe(second);
  expect(first).not.toBe(third);
});

test("text is whole code points, some of many bytes; seq grows, past tokens without text", async () => {
  open({ answerTokens: 600 });
  const one = run([7]);
  await one.end;
  const seqs = one.events.filter((event) => event.startsWith("tokens")).map((event) => Number(event.slice(7)));
  expect(seqs).toEqual([...seqs].sort((a, b) => a - b));
  expect(new Set(seqs).size).toBe(seqs.length);
  expect(seqs.length).toBeLessThan(599);
  expect(one.text()).toMatch(/\p{Extended_Pictographic}/u);
  expect(Buffer.from(one.text()).toString()).toBe(one.text());
});

test("minTokens and ignoreEos put off its end; log-probabilities it has none, and says so", async () => {
  open();
  const ends = await Promise.all([{ minTokens: 70 }, { ignoreEos: true, maxTokens: 60 }].map((changes) => run([1, 2, 3], changes).end));
  expect(ends.map(({ seq, reason }) => [seq, reason])).toEqual([
    [71, "stop"],
    [60, "length"],
  ]);
  expect(() => run([1], { logprobs: 1 })).toThrow(expect.objectContaining({ code: "field_invalid" }));
});

test("who finds no slot waits in line, and hears its place when it changes", async () => {
  open({ slots: 1 });
  const runs = [run([1]), run([2]), run([3])];
  await Promise.all(runs.map(({ end }) => end));
  const places = runs.map(({ events }) => events.filter((event) => event.startsWith("queued")));
  expect(places).toEqual([[], ["queued 1"], ["queued 2", "queued 1"]]);
});

test("cancel ends an answer once, without another token, and frees its slot", async () => {
  open({ slots: 1, answerTokens: 5_000 });
  const one = run([1], { maxTokens: 5_000 });
  await one.firstTokens;
  one.handle.cancel();
  const at = one.events.length;
  expect(inference.load()).toMatchObject({ running: 0, waiting: 0 });
  one.handle.cancel();
  expect((await one.end).reason).toBe("cancelled");
  expect(one.events.slice(at)).toEqual(["finished cancelled"]);
});

test("what cannot fit, or comes when too many wait, is refused at once", async () => {
  open({ slots: 1, answerTokens: 5_000 });
  expect(() => run([1], { maxTokens: 10_000 })).toThrow(expect.objectContaining({ code: "context_exceeded" }));
  // One of them has the slot, or is about to.
  for (let count = 0; count <= limits.waitingMax; count++) run([count]).end.catch(() => {});
  expect(() => run([1])).toThrow(expect.objectContaining({ code: "overloaded" }));
});

test("closing ends what runs and what waits with failed", async () => {
  open({ slots: 1, answerTokens: 5_000 });
  const runs = [run([1]), run([2])];
  const ends = Promise.allSettled(runs.map(({ end }) => end));
  await runs[0]?.firstTokens;
  await inference.close();
  expect((await ends).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  expect(() => run([1])).toThrow(expect.objectContaining({ code: "draining" }));
});

test("what is said is what the answer to its prompt has to be, whatever runs beside it", async () => {
  open({ slots: 8, answerTokens: 10_000 });
  const runs = [[1, 2, 3], [9], [4, 4]].map((prompt) => ({ prompt, run: run(prompt, { maxTokens: 300 }) }));
  for (const { prompt, run: one } of runs) {
    await one.end;
    expect({ text: one.text(), ids: one.ids }).toEqual(simulatedAnswer(simulatedVocabulary(), prompt, 300));
  }
});

// With any number of its tokens taken up, the rest is the rest, stop strings and split code points across the seam included.
test("a continued answer is the undisturbed one", async () => {
  open({ slots: 64, answerTokens: 10_000 });
  const whole = run([5, 6], { maxTokens: 60 });
  await whole.end;
  const stop = whole.text().slice(80, 86);
  const stopped = run([5, 6], { maxTokens: 60, stop: [stop] });
  await stopped.end;
  for (const changes of [{}, { stop: [stop] }]) {
    const { ids, text } = changes.stop ? stopped : whole;
    for (let count = 1; count < ids.length; count += 3) {
      const rest = run([5, 6], { maxTokens: 60, continueIds: Int32Array.from(ids.slice(0, count)), ...changes });
      expect((await rest.end).seq).toBe((await (changes.stop ? stopped : whole).end).seq);
      expect([rest.ids, rest.text()]).toEqual([ids, text()]);
    }
  }
});

test("a paused answer says nothing, leaves its slot to others, and goes on where it was", async () => {
  open({ slots: 1, answerTokens: 10_000 });
  const one = run([5], { maxTokens: 200 });
  await one.firstTokens;
  one.handle.pause();
  const had = one.events.length;
  const other = run([6], { maxTokens: 40 });
  await other.end;
  expect(one.events.length).toBe(had);
  one.handle.resume();
  await one.end;
  expect(one.text()).toBe(simulatedAnswer(simulatedVocabulary(), [5], 200).text);
});

// Whoever pauses it within its last token's call has its end all the same, and nothing after it.
test("an answer that is paused at its last token is over", async () => {
  open({ answerTokens: 10_000 });
  const one = run([5], { maxTokens: 7 });
  one.onTokens = () => one.handle.pause();
  expect(await one.end).toMatchObject({ seq: 7, reason: "length" });
  expect(one.text()).toBe(simulatedAnswer(simulatedVocabulary(), [5], 7).text);
});

// What a client brings is told before anything else, in the queue too, and counts though the answer is cancelled there.
test("what an answer is continued with is told though nobody has a slot for it", async () => {
  open({ slots: 1, answerTokens: 10_000 });
  const running = run([1], { maxTokens: 5_000 });
  await running.firstTokens;
  const { ids } = simulatedAnswer(simulatedVocabulary(), [5], 20);
  const over = run([5], { maxTokens: 20, continueIds: Int32Array.from(ids) });
  expect(await over.end).toMatchObject({ seq: 20, reason: "length" });
  expect(over.text()).toBe(simulatedAnswer(simulatedVocabulary(), [5], 20).text);
  const cancelled = run([5], { maxTokens: 40, continueIds: Int32Array.from(ids) });
  cancelled.handle.cancel();
  expect(await cancelled.end).toMatchObject({ seq: 20, reason: "cancelled" });
  expect(cancelled.ids).toEqual(ids.slice(0, cancelled.ids.length));
  expect(cancelled.ids.length).toBeGreaterThan(15);
  expect(running.events.at(-1)).toMatch(/^tokens/);
  running.handle.cancel();
  await running.end;
});

test("an answer is continued with text alone", () => {
  open();
  for (const id of [0, 1, -1, 100_000])
    expect(() => run([1], { continueIds: Int32Array.of(300, id) })).toThrow(
      expect.objectContaining({ code: "field_invalid", message: `continueIds has token ${id}, which no answer contains` }),
    );
});

// An engine's step has one moment for all; the clock has one for each, so that a crowd's tokens do not all come at once.
test("answers have their tokens one by one, or all at once where that is asked for", async () => {
  const moments = async (spread: boolean): Promise<number> => {
    // Slow, so that a machine with other work still tells moments apart.
    open({ slots: 40, tokensPerSecond: 4, spread });
    const heard = new Set<number>();
    const runs = Array.from({ length: 40 }, (_, id) => run([id], { maxTokens: 3 }));
    for (const one of runs) one.onTokens = () => void heard.add(Math.round(performance.now() / 2));
    await Promise.all(runs.map(({ end }) => end));
    await inference.close();
    return heard.size;
  };
  expect(await moments(false)).toBeLessThan(10);
  expect(await moments(true)).toBeGreaterThan(15);
});

// A real vocabulary makes load that is like a model's: its tokens, its tokenizer, its template.
test("it speaks in a model's vocabulary where one is given, and says so", async () => {
  const lines: string[] = [];
  const config = { simulatedTokensPerSecond: 5_000, simulatedAnswerTokens: 50, slots: 2, contextTokens: 4_096 };
  const loaded = await loadSimulated({ ...config, simulatedModel: defaultModelPath() }, (line) => lines.push(line));
  inference = loaded.inference as SimulatedInference;
  expect(loaded.vocabulary.merges.length).toBeGreaterThan(10_000);
  expect(lines.join()).toMatch(/no model answers; the \d{5} tokens of .*\.gguf on a clock/);
  const one = run([1, 2, 3], { maxTokens: 400, ignoreEos: true });
  await one.end;
  expect(one.ids).toEqual(simulatedAnswer(loaded.vocabulary, [1, 2, 3], 400).ids);
  expect(new Set(one.ids).size).toBeGreaterThan(200);
  await expect(loadSimulated({ ...config, simulatedModel: "/nowhere/none.gguf" }, () => {})).rejects.toThrow(/none\.gguf cannot be opened/);
});
