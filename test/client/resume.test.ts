/** What a lost socket is to a reader: nothing. The answer is resumed where it is, as soon as there is a way to it. */
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { clientLimits } from "../../client/limits.js";
import { type Cancel, Op, type Resume, type Truncate } from "../../shared/protocol.js";
import { ScriptedEdge } from "../support/scriptedEdge.js";
import { all, answer, failoverWaitMs, home, question, read, ScriptedAnswer, Stage } from "./support.js";

const stage = new Stage();
afterEach(async () => {
  await stage.close();
  vi.restoreAllMocks();
  vi.unstubAllGlobals();
});

describe("a lost socket", () => {
  // One unbroken iterator: what the answer lacks comes over the next socket, out of the middle of a frame.
  test("is replaced, and the answer goes on behind the last token", async () => {
    const link = await stage.linked();
    const { response, peer } = await stage.begun(link);
    const reading = read(response);
    peer.socket.terminate();
    const next = await stage.edge.connected(2);
    const resume = await next.next<Resume>(Op.RESUME);
    expect(resume).toEqual([Op.RESUME, 2, "epoch-1", "response-1", 2, all]);
    answer.resume(next, resume);
    expect(await reading).toBe(answer.text);
    expect([stage.offered(1), stage.offered(2)]).toEqual([["ticket.scripted"], ["resume.token-1"]]);
    expect(response).toMatchObject({ reason: "stop", attempts: 1, error: undefined });
  });

  test("brings nothing twice", async () => {
    const link = await stage.linked();
    const { response, peer } = await stage.begun(link);
    peer.socket.terminate();
    const next = await stage.edge.connected(2);
    const [, stream] = await next.next<Resume>(Op.RESUME);
    answer.resumed(next, stream);
    answer.tokens(next, stream, 0, 1);
    answer.tokens(next, stream, 0, 2);
    answer.tokens(next, stream, 2, 5);
    answer.tokens(next, stream, 2, 5);
    answer.done(next, stream);
    expect(await read(response)).toBe(answer.text);
  });

  // Several answers share the socket, and all of them its successor.
  test("is replaced once for all its answers", async () => {
    const link = await stage.linked();
    const responses = [1, 2, 3].map(() => link.start(question));
    for (const number of [1, 2, 3]) {
      const { peer, stream } = await stage.edge.question(number);
      new ScriptedAnswer(answer.texts, `response-${number}`).started(peer, stream);
    }
    await expect.poll(() => responses[2]?.id).toBe("response-3");
    stage.edge.peer.socket.terminate();
    const next = await stage.edge.connected(2);
    for (const number of [1, 2, 3]) {
      const resume = await next.next<Resume>(Op.RESUME, number);
      new ScriptedAnswer(answer.texts, resume[3]).resume(next, resume);
    }
    expect(await Promise.all(responses.map(read))).toEqual([answer.text, answer.text, answer.text]);
    expect(stage.edge.peers.length).toBe(2);
  });

  // Whether START arrived is unknown: the same one goes out again, and says where it was first sent.
  test("in the moment of asking", async () => {
    const link = await stage.linked();
    const response = link.start(question, { temperature: 0.5 });
    const first = await stage.edge.question(1);
    first.peer.socket.terminate();
    const again = await stage.edge.question(2);
    expect(again.options).toEqual({ ...first.options, sentTo: "epoch-1" });
    expect(first.options).toMatchObject({
      temperature: 0.5,
      tokenIds: true,
      attempt: 1,
      key: expect.any(String),
      seed: expect.any(Number),
    });
    answer.resumed(again.peer, again.stream);
    answer.tokens(again.peer, again.stream, 0, 5);
    answer.done(again.peer, again.stream);
    expect(await read(response)).toBe(answer.text);
  });

  // The text is no longer there: a reader is told, and nothing is begun anew behind its back.
  test.each([
    [3, "length", /ended \(length\) at token 3 .* 2 of its tokens had come/],
    [0, "unknown", /does not know the answer any more: 2 of its tokens had come/],
  ])("for too long: EXPIRED at %i, %s", async (seq, reason, sentence) => {
    const link = await stage.linked();
    const { response, peer } = await stage.begun(link);
    peer.socket.terminate();
    const next = await stage.edge.connected(2);
    const [, stream] = await next.next<Resume>(Op.RESUME);
    next.send([Op.EXPIRED, stream, seq, reason]);
    await expect(response.done).rejects.toMatchObject({ code: "connection_lost", message: expect.stringMatching(sentence) });
    expect(response.text).toBe("Because blue ");
  });

  // Stopping without a connection is said with the first breath of the next one.
  test("does not swallow a stop", async () => {
    let stop = (): void => {};
    const link = await stage.linked([home], { onState: ({ kind }) => kind === "connecting" && stop() });
    const { response, peer } = await stage.begun(link);
    stop = () => response.cancel();
    peer.socket.terminate();
    const next = await stage.edge.connected(2);
    await next.next<Cancel>(Op.CANCEL);
    expect(next.received.map(([op]) => op)).toEqual([Op.RESUME, Op.CANCEL]);
    const [, stream] = await next.next<Resume>(Op.RESUME);
    answer.resumed(next, stream);
    new ScriptedAnswer(answer.texts.slice(0, 2)).done(next, stream, "cancelled");
    expect((await response.done).reason).toBe("cancelled");
  });

  // An answer that is over may be truncated over a new socket.
  test("does not keep an answer from being truncated after its end", async () => {
    const link = await stage.linked();
    const { response, peer, stream } = await stage.begun(link);
    answer.tokens(peer, stream, 2, 5);
    answer.done(peer, stream);
    await response.done;
    peer.socket.terminate();
    await stage.edge.connected(2);
    response.truncate(8);
    const next = stage.edge.peer;
    expect(await next.next<Truncate>(Op.TRUNCATE)).toEqual([Op.TRUNCATE, 2, 8]);
    next.send([Op.TRUNCATED, 2, 1, 8]);
    await expect.poll(() => response.truncatedAt).toBe(8);
    expect(response.heard).toBe("Because ");
  });

  // The origin may not have noticed yet that the old socket is gone, and counts it.
  test("whose place is still taken is asked for again", async () => {
    const link = await stage.linked();
    const { response, peer } = await stage.begun(link);
    peer.socket.terminate();
    const next = await stage.edge.connected(2);
    const [, stream] = await next.next<Resume>(Op.RESUME);
    next.send([Op.ERROR, stream, "subscribers_exhausted", "4 sockets follow this answer already", 20]);
    answer.resume(next, await next.next<Resume>(Op.RESUME, 2));
    expect(await read(response)).toBe(answer.text);
  });
});

describe("a network that goes away", () => {
  const page = Object.assign(new EventTarget(), { hidden: false });
  const window = new EventTarget();
  beforeEach(() => {
    vi.stubGlobal("document", page);
    vi.stubGlobal("addEventListener", window.addEventListener.bind(window));
    vi.stubGlobal("removeEventListener", window.removeEventListener.bind(window));
  });
  function passTime(ms: number): void {
    const now = performance.now.bind(performance);
    vi.spyOn(performance, "now").mockImplementation(() => now() + ms);
  }

  // Nobody was reached who could know anything of the origin, so it is not given up, however long that takes.
  test("leads home when it is back", async () => {
    const link = await stage.linked();
    const { response, peer } = await stage.begun(link);
    const { port } = stage.edge;
    peer.socket.terminate();
    await stage.edge.stop();
    await expect.poll(() => link.state?.kind).toBe("waiting");
    passTime(100 * failoverWaitMs);
    stage.edge = await ScriptedEdge.start({ onOpen: home }, port);
    const next = await stage.edge.connected(1);
    expect(next.protocols).toEqual(["millrace.v1", "resume.token-1"]);
    answer.resume(next, await next.next<Resume>(Op.RESUME));
    expect(await read(response)).toBe(answer.text);
    expect(response.attempts).toBe(1);
  });

  test("is tried at once when the page has it again", async () => {
    const link = await stage.linked([home, (peer) => peer.refuse("origin_unreachable", "no origin", 600_000), home]);
    const { response, peer } = await stage.begun(link);
    peer.socket.terminate();
    await expect.poll(() => link.state?.kind).toBe("waiting");
    window.dispatchEvent(new Event("online"));
    const next = await stage.edge.connected(3);
    answer.resume(next, await next.next<Resume>(Op.RESUME));
    expect(await read(response)).toBe(answer.text);
  });

  // A tab that was frozen may hold a socket that died without a word: shown again, it does not wait for the next PING to be missed.
  test("is found out by a page that wakes up", async () => {
    const link = await stage.linked();
    const { response } = await stage.begun(link);
    page.dispatchEvent(new Event("visibilitychange"));
    expect(link.state?.kind).toBe("open");
    passTime(25_000 + clientLimits.pingLateMs);
    page.dispatchEvent(new Event("visibilitychange"));
    const next = await stage.edge.connected(2);
    answer.resume(next, await next.next<Resume>(Op.RESUME));
    expect(await read(response)).toBe(answer.text);
  });
});
