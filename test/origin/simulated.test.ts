/** The simulated inference keeps the seam's contract: it is what everything above is tested with. */
import * as fc from "fast-check";
import { afterEach, expect, test } from "vitest";
import type { InferenceEnd, InferenceHandle, InferenceListener } from "../../origin/inference.js";
import { SimulatedInference, simulatedAnswer, simulatedVocabulary } from "../../origin/simulated.js";
import { TextDecoding } from "../../origin/simulatedText.js";
import { StopFilter } from "../../origin/stops.js";
import { greedy } from "../../scripts/bench/greedy.js";
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
  for (let count = 0; count < limits.waitingMax; count++) run([count]).end.catch(() => {});
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

// Values written down: a change of the hash, the vocabulary or the drawing changes what every test of the relay expects.
test("the answer to a prompt is what it always was", () => {
  const vocabulary = simulatedVocabulary();
  const { ids, text } = simulatedAnswer(vocabulary, [1, 2, 3], 12);
  expect(ids).toEqual([281, 311, 295, 272, 270, 295, 263, 286, 259, 292, 315, 182]);
  expect(text).toBe(" flour \u0637\u0627\u062d\u0648\u0646\u0629 runs stones new runs wheel light a closes \u00f4");
  // Another order, another beginning, one token less: everything after that is another.
  const others = [
    [1, 3, 2],
    [2, 2, 3],
    [1, 2],
  ].map((prompt) => simulatedAnswer(vocabulary, prompt, 12).text);
  expect(new Set([text, ...others]).size).toBe(4);
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

// As the engine's releaser does it: whole code points, and each token with the code point that its last byte belongs to.
test.each<[string, number[][], string[]]>([
  ["plain", [[0x61], [0x62, 0x63]], ["a", "bc"]],
  [
    "a split code point",
    [
      [0x61, 0xc3],
      [0xa9, 0x62],
    ],
    ["a\u00e9", "b"],
  ],
  ["one of four bytes in three", [[0xf0], [0x9f, 0x8c], [0x8a]], ["\u{1f30a}", "", ""]],
  ["one that is never ended", [[0x61], [0xe6, 0xb0]], ["a", "\ufffd"]],
  ["a byte that fits nowhere", [[0xa9], [0xc3], [0x61]], ["\ufffd", "\ufffda", ""]],
  ["an overlong form", [[0xe0, 0x80], [0x80]], ["\ufffd\ufffd", "\ufffd"]],
])("bytes become text: %s", (_, tokens, texts) => {
  const decoding = new TextDecoding();
  const pieces = tokens.flatMap((bytes, id) => decoding.push(id, Uint8Array.from(bytes)));
  pieces.push(...decoding.flush());
  expect(pieces).toEqual(texts.map((text, id) => ({ id, text })));
});

// For all texts cut into all tokens: what is released is the text before the first stop string, and never in parts of a token.
test("stop strings are found wherever they are cut", () => {
  const tokens = fc.array(fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 4 }), { maxLength: 12 });
  const stops = fc.array(fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 5 }), { maxLength: 3 });
  fc.assert(
    fc.property(tokens, stops, (pieces, strings) => {
      const filter = new StopFilter(strings);
      let released = "";
      let stopped = false;
      let last = 0;
      for (const [id, text] of pieces.entries()) {
        const step = filter.push([{ id, text }], true);
        released += step.released.map((piece) => piece.text).join("");
        expect(step.released.map((piece) => piece.id)).toEqual(step.released.map((_, index) => last + index));
        last += step.released.length;
        if (!step.stopped) expect(released).toBe(pieces.slice(0, last).join(""));
        stopped = step.stopped;
        if (stopped) break;
      }
      released += stopped
        ? ""
        : filter
            .end()
            .map((piece) => piece.text)
            .join("");
      const whole = pieces.join("");
      const ends = strings.map((stop) => whole.indexOf(stop)).filter((at) => at >= 0);
      expect(stopped).toBe(ends.length > 0);
      if (!stopped) expect(released).toBe(whole);
      else expect(strings.some((stop) => whole.startsWith(released + stop))).toBe(true);
    }),
  );
});
