/** One link over real sockets, and an edge that says what the test wants: tickets, refusals, pages, states. */
import fc from "fast-check";
import { afterEach, describe, expect, test, vi } from "vitest";
import { clientLimits } from "../../client/limits.js";
import { backoffMs, type LinkState } from "../../client/line.js";
import { Link } from "../../client/link.js";
import { type Cancel, type Credit, Op, type Resume, type Start } from "../../shared/protocol.js";
import { idOf } from "../support/scriptedEdge.js";
import { all, answer, home, other, question, read, ScriptedAnswer, Stage } from "./support.js";

const stage = new Stage();
afterEach(() => stage.close());

describe("a ticket", () => {
  test.each(["resume_invalid", "session_expired", "assertion_invalid"] as const)("is fetched anew for %s", async (code) => {
    const link = await stage.linked([home, (peer) => peer.refuse(code), home]);
    const { response, peer } = await stage.begun(link);
    peer.socket.terminate();
    const next = await stage.edge.connected(3);
    expect([stage.offered(2), stage.offered(3)]).toEqual([["resume.token-1"], ["ticket.scripted"]]);
    answer.resume(next, await next.next<Resume>(Op.RESUME));
    expect(await read(response)).toBe(answer.text);
  });

  // With the token nothing leads back to the origin, so the answer goes on where the ticket led.
  test("that leads elsewhere restarts what it cannot reach", async () => {
    const link = await stage.linked([home, (peer) => peer.refuse("resume_invalid"), other]);
    const { response, peer } = await stage.begun(link);
    peer.socket.terminate();
    const next = await stage.edge.connected(3);
    next.send([Op.MISROUTED, (await next.next<Resume>(Op.RESUME))[1], "epoch-2"]);
    const { stream, options } = await stage.edge.question(2);
    expect(options).toMatchObject({ attempt: 2 });
    answer.goOn(next, stream);
    expect(await read(response)).toBe(answer.text);
  });

  test("that does not help is not fetched in a rush", async () => {
    const link = await stage.linked([home, (peer) => peer.refuse("assertion_invalid")]);
    const { peer } = await stage.begun(link);
    peer.socket.terminate();
    await stage.edge.connected(3);
    await expect.poll(() => link.state).toMatchObject({ kind: "waiting", error: { code: "assertion_invalid" } });
  });
});

describe("what cannot be helped", () => {
  test("ends the answers with its sentence, and waits for somebody", async () => {
    const states: LinkState[] = [];
    const link = await stage.linked([home, (peer) => peer.refuse("page_origin_refused", "another page"), home], {
      onState: (state) => states.push(state),
    });
    const { response, peer } = await stage.begun(link);
    peer.socket.terminate();
    await expect(response.done).rejects.toMatchObject({ code: "page_origin_refused", message: "another page" });
    expect(states.at(-1)).toMatchObject({ kind: "stopped", error: { code: "page_origin_refused" } });
    // Asking again is somebody's doing.
    link.start(question);
    await stage.edge.question(2);
    expect(states.at(-1)?.kind).toBe("open");
  });

  test("a first question that is refused is the asker's to repeat", async () => {
    const link = await stage.linked();
    const response = link.start(question);
    const { peer, stream } = await stage.edge.question();
    peer.send([Op.ERROR, stream, "overloaded", "no promise can be made", 3_000]);
    await expect(response.done).rejects.toMatchObject({ code: "overloaded", retryAfterMs: 3_000 });
  });

  test("a question too long to send ends alone", async () => {
    const link = await stage.linked([(peer) => peer.hello({ frameBytesMax: 500 })]);
    const long = link.start([{ role: "user", content: "x".repeat(600) }]);
    await expect(long.done).rejects.toMatchObject({ code: "frame_too_large" });
    link.start(question);
    await stage.edge.question();
  });

  test("a window that is none ends the answer, and nothing is sent", async () => {
    const link = await stage.linked();
    await expect(link.start(question, {}, { window: 0 }).done).rejects.toMatchObject({ code: "field_invalid" });
    expect(stage.edge.peers.length).toBe(0);
  });

  test("a closed link ends its answers, and takes no more", async () => {
    const link = await stage.linked();
    const { response } = await stage.begun(link);
    link.close();
    await expect(response.done).rejects.toMatchObject({ code: "closed_by_caller" });
    await expect(link.start(question).done).rejects.toMatchObject({ code: "closed_by_caller" });
    expect(response.text).toBe("Because blue ");
  });

  test("a runtime without WebSocket is told so at once", async () => {
    await stage.linked();
    vi.stubGlobal("WebSocket", undefined);
    expect(() => new Link({ edge: stage.edge.url })).toThrow(TypeError);
    vi.unstubAllGlobals();
  });
});

describe("kept", () => {
  // The reloaded page needs no ticket and no second socket: the answer's token leads back.
  test("a reloaded page goes on with the answer", async () => {
    const link = await stage.linked();
    const { response } = await stage.begun(link);
    const kept = JSON.parse(JSON.stringify(response.kept()));
    link.close();
    const reloaded = stage.link();
    const adopted = reloaded.adopt(kept);
    reloaded.open();
    expect(adopted.text).toBe("Because blue ");
    const next = await stage.edge.connected(2);
    const resume = await next.next<Resume>(Op.RESUME);
    expect(resume.slice(2)).toEqual(["epoch-1", "response-1", 2, all]);
    answer.resume(next, resume);
    expect(await read(adopted)).toBe(answer.text);
    reloaded.start(question);
    expect((await stage.edge.question(2)).peer).toBe(next);
    expect([stage.edge.peers.length, stage.offered(2)]).toEqual([2, ["resume.token-1"]]);
  });

  // A duplicated tab reads along, and either may stop it for both.
  test("two pages follow one answer", async () => {
    const link = await stage.linked();
    const { response, peer, stream } = await stage.begun(link);
    const twin = stage.link();
    const followed = twin.adopt(response.kept());
    const beside = await stage.edge.connected(2);
    const [, follows] = await beside.next<Resume>(Op.RESUME);
    answer.resumed(beside, follows);
    followed.cancel();
    await beside.next<Cancel>(Op.CANCEL);
    const cut = new ScriptedAnswer(answer.texts.slice(0, 2));
    cut.done(peer, stream, "cancelled");
    cut.done(beside, follows, "cancelled");
    expect([(await response.done).reason, (await followed.done).reason]).toEqual(["cancelled", "cancelled"]);
  });

  test("an answer of a dead origin is restarted from what was kept", async () => {
    const link = await stage.linked([home, other]);
    const { response } = await stage.begun(link);
    const kept = response.kept();
    link.close();
    const reloaded = stage.link();
    const adopted = reloaded.adopt(kept);
    const next = await stage.edge.connected(2);
    next.send([Op.GONE, (await next.next<Resume>(Op.RESUME))[1], "epoch-1"]);
    const { options, stream, messages } = await stage.edge.question(2);
    expect(messages).toEqual([["user", question[0].content]]);
    expect(options).toMatchObject({ attempt: 2, continueIds: [idOf(1), idOf(2)], key: kept.asked.options.key });
    answer.goOn(next, stream);
    expect(await read(adopted)).toBe(answer.text);
  });
});

// Credit goes along with the reader, over the wire.
test("a slow reader grants as it reads", async () => {
  const link = await stage.linked();
  const response = link.start(question, {}, { window: 2 });
  const { peer, stream, options } = await stage.edge.question();
  expect(options.creditSeq).toBe(2);
  answer.started(peer, stream);
  answer.tokens(peer, stream, 0, 2);
  const pulls = response[Symbol.asyncIterator]();
  expect((await pulls.next()).value).toBe("Because blue ");
  const pull = pulls.next();
  expect(await peer.next<Credit>(Op.CREDIT)).toEqual([Op.CREDIT, stream, 4]);
  answer.tokens(peer, stream, 2, 4);
  expect((await pull).value).toBe("light scatters ");
});

// A record of all messages names each stream once, however many sockets they went over.
test("streams are numbered through all sockets", async () => {
  const link = await stage.linked();
  link.start(question);
  link.start(question);
  await stage.edge.question(2);
  stage.edge.peer.socket.terminate();
  await stage.edge.question(4);
  expect(stage.edge.peers.flatMap(({ received }) => (received as Start[]).map(([, stream]) => stream))).toEqual([1, 2, 3, 4]);
});

// What the page shows of it: nothing while a socket is merely replaced, and the reason and the time once that fails.
test("it says how it goes", async () => {
  const states: LinkState[] = [];
  const link = await stage.linked([home, (peer) => peer.refuse("model_loading", "the model is loading", 30), home], {
    onState: (state) => states.push(state),
  });
  const { peer } = await stage.begun(link);
  peer.socket.terminate();
  await stage.edge.connected(3);
  await expect.poll(() => states.at(-1)?.kind).toBe("open");
  expect(states.map(({ kind }) => kind)).toEqual([
    ...["connecting", "open"],
    ...["connecting", "connecting", "waiting"],
    ...["connecting", "open"],
  ]);
  expect(states[4]).toMatchObject({ error: { code: "model_loading" } });
  const { retryInMs } = states[4] as Extract<LinkState, { kind: "waiting" }>;
  expect(retryInMs).toBeGreaterThanOrEqual(30);
  expect(retryInMs).toBeLessThanOrEqual(30 + clientLimits.redialJitterMs);
});

// A program that asks while a server wants to be left alone for a while does not knock before its time.
test("asking does not hurry a server that said when to come", async () => {
  const link = await stage.linked([(peer) => peer.refuse("overloaded", "later", 600_000)]);
  link.open();
  await expect.poll(() => link.state?.kind).toBe("waiting");
  link.start(question);
  expect(link.state?.kind).toBe("waiting");
  expect(stage.edge.peers.length).toBe(1);
});

test("the pause grows, is bounded, and is never all chance", () => {
  fc.assert(
    fc.property(fc.nat(2_000), fc.double({ min: 0, max: 1, noNaN: true }), (failures, random) => {
      const most = backoffMs(failures, 1);
      expect(backoffMs(failures, random)).toBeGreaterThanOrEqual(most / 2 - 1);
      expect(backoffMs(failures + 1, random)).toBeGreaterThanOrEqual(backoffMs(failures, random));
      expect(most).toBeLessThanOrEqual(clientLimits.backoffMsMax);
    }),
  );
});
