/** What an answer lives through: readers without credit, its own end, and a restart with the tokens it had elsewhere. */
import { beforeEach, describe, expect, test } from "vitest";
import { bounds } from "../../origin/bounds.js";
import { MillraceError } from "../../shared/errors.js";
import { limits } from "../../shared/limits.js";
import { end, request, ScriptedOrigin, settled } from "./scriptedOrigin.js";

let origin: ScriptedOrigin;
beforeEach(() => {
  origin = new ScriptedOrigin();
});

describe("credit", () => {
  test("an answer that has used it up is parked, and goes on with more", async () => {
    const { response, subscription } = origin.start(request({ creditSeq: 1 }));
    await settled();
    expect(origin.inference.held).toEqual([]);
    origin.say(1, "a");
    expect(origin.inference.held).toEqual(["pause 0"]);
    // The token of the step under way.
    origin.say(2, "b");
    expect(origin.events.at(-1)).toEqual(["tokens", 1, "a"]);
    origin.nowMs = 300;
    response.credit(subscription, 5);
    expect([origin.inference.held, origin.events.at(-1)]).toEqual([
      ["pause 0", "resume 0"],
      ["tokens", 2, "b"],
    ]);
    origin.listener().finished({ ...end, seq: 2 });
    expect(origin.events.at(-1)).toMatchObject(["done", { timings: { parkedMs: expect.closeTo(300, -2), gapCause: expect.any(String) } }]);
  });

  test("parked for too long, it ends with the reason", async () => {
    origin.start(request({ creditSeq: 1 }));
    await settled();
    origin.say(1, "a");
    origin.nowMs = limits.parkedMs + 100;
    origin.responses.tick();
    expect(origin.events.at(-1)).toEqual([
      "failed",
      "credit_exhausted",
      expect.stringContaining("credit beyond token 1 did not come within"),
    ]);
    expect(origin.inference.cancelled).toEqual([0]);
  });

  test("a tenant has so many in the park", async () => {
    for (let index = 0; index <= limits.parkedOfTenantMax; index++) origin.start(request({ creditSeq: 0 }));
    await settled();
    expect(origin.events.filter(([what]) => what === "failed")).toEqual([
      [
        "failed",
        "credit_exhausted",
        `credit ended with token 0, and ${limits.parkedOfTenantMax} answers of this tenant are parked already`,
      ],
    ]);
    origin.start({ ...request({ creditSeq: 0 }), owner: { tenant: "tenant-2", user: "user-1" } });
    await settled();
    expect(origin.events.filter(([what]) => what === "failed")).toHaveLength(1);
  });
});

describe("what is kept", () => {
  test("the text for two minutes, then how it ended, then nothing", async () => {
    const { response } = origin.start(request({ key: "k" }));
    await settled();
    origin.say(1, "a");
    origin.listener().finished({ ...end, seq: 1 });
    origin.nowMs = bounds.logsKeptMs - 100;
    origin.responses.tick();
    expect(origin.resume(response.id, 0).kind).toBe("subscribed");
    await settled();
    expect(origin.events.slice(-3)).toEqual([
      ["resumed", 1],
      ["tokens", 1, "a"],
      ["done", expect.anything()],
    ]);
    origin.nowMs = bounds.logsKeptMs + 100;
    origin.responses.tick();
    expect(origin.resume(response.id, 0)).toEqual({ kind: "expired", seq: 1, reason: "stop" });
    expect(origin.begin(request({ key: "k" }))).toEqual({ kind: "expired", seq: 1, reason: "stop" });
    origin.nowMs += bounds.tombstonesKeptMs + 100;
    origin.responses.tick();
    expect(origin.resume(response.id, 0)).toEqual({ kind: "expired", seq: 0, reason: "unknown" });
  });

  // What was refused has no answer: the same key may ask again.
  test("a refusal is forgotten", async () => {
    origin.inference.refusal = new MillraceError("overloaded", "256 wait", 1_000);
    origin.start(request({ key: "k" }));
    await settled();
    origin.inference.refusal = undefined;
    origin.start(request({ key: "k" }));
    await settled();
    expect(origin.events).toEqual([
      ["failed", "overloaded", "256 wait"],
      ["started", 3, 2],
    ]);
  });

  test("the oldest texts go first where there are too many bytes of them", async () => {
    const long = "x".repeat(1 << 20);
    const ids: string[] = [];
    for (let index = 0; index < 70; index++) {
      ids.push(origin.start().response.id);
      await settled();
      origin.say(1, long, {}, index);
      origin.listener(index).finished({ ...end, seq: 1 });
    }
    expect(origin.resume(ids[0] as string, 0).kind).toBe("expired");
    expect(origin.resume(ids.at(-1) as string, 0).kind).toBe("subscribed");
  });
});

describe("restarting", () => {
  test("the tokens brought along count as generated, and are not told again", async () => {
    origin.start(request({ key: "k", attempt: 2, continueIds: [101, 102] }));
    await settled();
    expect(origin.inference.submitted[0]?.request.continueIds).toEqual(Int32Array.of(101, 102));
    origin.listener().tokens({ seq: 2, text: "ab", ids: [101, 102], ends: [1, 2] });
    origin.say(3, "c");
    origin.listener().finished(end);
    expect(origin.events.slice(1)).toEqual([
      ["tokens", 3, "c"],
      ["done", expect.objectContaining({ textBytes: 3, usage: expect.objectContaining({ continuedTokens: 2, completionTokens: 3 }) })],
    ]);
    expect((await origin.metrics.scrape()).split("\n")).toContain("millrace_generation_tokens_total 1");
  });

  test("cancelled before it is taken, a restart ends without a token of its own", async () => {
    const { response } = origin.start(request({ key: "k", attempt: 2, continueIds: [101, 102] }));
    response.cancel();
    await settled();
    expect(origin.events).toEqual([
      [
        "done",
        expect.objectContaining({ seq: 0, textBytes: 0, usage: expect.objectContaining({ continuedTokens: 2, completionTokens: 2 }) }),
      ],
    ]);
  });

  test.each([
    ["special ones", { continueIds: [101, 0] }, "continueIds has the special token 0, which no answer contains"],
    ["more than there may be", { continueIds: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] }, "continueIds has 10 tokens, over the 9"],
  ])("%s are refused", async (_, options, sentence) => {
    origin.start(request(options));
    await settled();
    expect(origin.events).toEqual([["failed", "field_invalid", expect.stringContaining(sentence)]]);
  });

  test("a higher attempt replaces a lower one, which is cancelled", async () => {
    origin.start(request({ key: "k" }));
    await settled();
    origin.start(request({ key: "k", attempt: 2 }));
    expect(origin.inference.cancelled).toEqual([0]);
    origin.start(request({ key: "k", attempt: 1 }));
    await settled();
    expect([origin.inference.submitted.length, origin.responses.count]).toEqual([2, 2]);
  });
});
