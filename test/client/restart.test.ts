/** What the end of an origin is to a reader: nothing. The answer is continued at another, and never without leave. */
import { afterEach, describe, expect, test, vi } from "vitest";
import type { LinkState } from "../../client/line.js";
import { Op, type Resume } from "../../shared/protocol.js";
import { idOf } from "../support/scriptedEdge.js";
import { answer, failoverWaitMs, home, other, question, read, ScriptedAnswer, Stage } from "./support.js";

const stage = new Stage();
afterEach(async () => {
  vi.restoreAllMocks();
  await stage.close();
});

describe("a dead origin", () => {
  // The edge knows it dead and led the session elsewhere: GONE permits the next attempt, on the same socket.
  test("that the edge knows of: the answer is continued at another", async () => {
    const link = await stage.linked([home, other]);
    const { response, peer } = await stage.begun(link);
    const reading = read(response);
    peer.socket.terminate();
    const next = await stage.edge.connected(2);
    const [, stream, epoch] = await next.next<Resume>(Op.RESUME);
    expect(epoch).toBe("epoch-1");
    next.send([Op.GONE, stream, epoch]);
    const { options, stream: restarted } = await stage.edge.question(2);
    expect(options).toMatchObject({ attempt: 2, continueIds: [idOf(1), idOf(2)], maxTokens: 9 });
    expect(options).not.toHaveProperty("sentTo");
    answer.goOn(next, restarted);
    expect(await reading).toBe(answer.text);
    expect([response.attempts, response.epoch, stage.edge.peers.length]).toEqual([2, "epoch-2", 2]);
  });

  // Nobody said that it is dead: it is tried, then waited for as long as the edge says, then given up. Two attempts, no more.
  test("that nobody knows of: it is tried, and given up in its time", async () => {
    const link = await stage.linked([home, (peer) => peer.refuse("origin_unreachable", "no origin", failoverWaitMs), other]);
    const { response, peer } = await stage.begun(link);
    peer.socket.terminate();
    const lostMs = performance.now();
    const next = await stage.edge.connected(3);
    expect(performance.now() - lostMs).toBeGreaterThanOrEqual(failoverWaitMs - 5);
    expect([stage.offered(2), stage.offered(3)]).toEqual([["resume.token-1"], ["resume.token-1", "elsewhere"]]);
    const { options, stream } = await stage.edge.question(2);
    expect(options).toMatchObject({ attempt: 2, continueIds: [idOf(1), idOf(2)] });
    answer.goOn(next, stream);
    expect(await read(response)).toBe(answer.text);
    expect(next.received.map(([op]) => op)).toEqual([Op.START]);
  });

  test("that takes sockets and says nothing on them is given up too", async () => {
    const silent: typeof home = (peer) => peer.socket.terminate();
    const link = await stage.linked([home, silent, silent, other]);
    // The shortest waits of all: the second one ends behind failoverWaitMs.
    vi.spyOn(Math, "random").mockReturnValue(0);
    const { response, peer } = await stage.begun(link);
    peer.socket.terminate();
    const { peer: next, options, stream } = await stage.edge.question(2);
    expect(next.protocols).toEqual(["millrace.v1", "resume.token-1", "elsewhere"]);
    expect(options).toMatchObject({ attempt: 2 });
    answer.goOn(next, stream);
    expect(await read(response)).toBe(answer.text);
  });

  // It came back in time: whoever asked for elsewhere, and was led home, resumes.
  test("that is there again has its answers", async () => {
    const link = await stage.linked([home, (peer) => peer.refuse("origin_unreachable", "no origin", failoverWaitMs), home]);
    const { response, peer } = await stage.begun(link);
    peer.socket.terminate();
    const next = await stage.edge.connected(3);
    answer.resume(next, await next.next<Resume>(Op.RESUME));
    expect(await read(response)).toBe(answer.text);
    expect(response.attempts).toBe(1);
  });

  // A stop counts as confirmed where nothing runs any more, and begins nothing.
  test("takes a stopped answer with it", async () => {
    const link = await stage.linked([home, other]);
    const { response, peer } = await stage.begun(link);
    peer.socket.terminate();
    response.cancel();
    const next = await stage.edge.connected(2);
    const [, stream] = await next.next<Resume>(Op.RESUME);
    next.send([Op.GONE, stream, "epoch-1"]);
    expect((await response.done).reason).toBe("cancelled");
    expect(next.received.map(([op]) => op)).toEqual([Op.RESUME, Op.CANCEL]);
  });

  // The other origin is full: an answer that ran is not given up for that.
  test("whose answer is refused at first is asked for again", async () => {
    const link = await stage.linked([home, other]);
    const { response, peer } = await stage.begun(link);
    peer.socket.terminate();
    const next = await stage.edge.connected(2);
    next.send([Op.GONE, (await next.next<Resume>(Op.RESUME))[1], "epoch-1"]);
    const refused = await stage.edge.question(2);
    next.send([Op.ERROR, refused.stream, "overloaded", "no promise can be made", 20]);
    const taken = await stage.edge.question(3);
    expect(taken.options).toEqual(refused.options);
    answer.goOn(next, taken.stream);
    expect(await read(response)).toBe(answer.text);
  });
});

describe("a session that is led astray", () => {
  // Never restarted there: its origin lives.
  test("goes home by its own token", async () => {
    const link = await stage.linked([home, other, home]);
    const { response, peer } = await stage.begun(link);
    peer.socket.terminate();
    const astray = await stage.edge.connected(2);
    astray.send([Op.MISROUTED, (await astray.next<Resume>(Op.RESUME))[1], "epoch-2"]);
    const next = await stage.edge.connected(3);
    expect(next.protocols).toEqual(["millrace.v1", "resume.token-1"]);
    answer.resume(next, await next.next<Resume>(Op.RESUME));
    expect(await read(response)).toBe(answer.text);
    expect(response.attempts).toBe(1);
    // The next question is asked where the session was led.
    link.start(question);
    expect((await stage.edge.question(2)).peer).toBe(astray);
  });

  test("again and again, restarts in the end", async () => {
    const link = await stage.linked([home, other]);
    const { response, peer } = await stage.begun(link);
    stage.edge.script.onMessage = (at, message) => {
      if (message[0] === Op.RESUME) at.send([Op.MISROUTED, message[1], "epoch-2"]);
    };
    peer.socket.terminate();
    const { peer: next, stream, options } = await stage.edge.question(2);
    expect(options).toMatchObject({ attempt: 2, continueIds: [idOf(1), idOf(2)] });
    answer.goOn(next, stream);
    expect(await read(response)).toBe(answer.text);
  });
});

describe("GOAWAY", () => {
  // The next socket is opened, elsewhere, before this one closes; what runs ends where it is, what is new begins there.
  test("of a draining origin: new answers go elsewhere, running ones to their end", async () => {
    const states: LinkState["kind"][] = [];
    const link = await stage.linked([home, other], { onState: ({ kind }) => states.push(kind) });
    const { response, peer, stream } = await stage.begun(link);
    peer.send([Op.GOAWAY, 0, 10_000, "draining"]);
    const next = await stage.edge.connected(2);
    expect(stage.offered(2)).toEqual(["resume.token-1", "elsewhere"]);
    await expect.poll(() => link.hello?.epoch).toBe("epoch-2");
    const second = link.start(question);
    const asked = await stage.edge.question(2);
    expect(asked.peer).toBe(next);
    new ScriptedAnswer(["Yes."], "response-2").started(next, asked.stream);
    next.tokens(asked.stream, ["Yes."]);
    next.done(asked.stream, ["Yes."]);
    expect(await read(second)).toBe("Yes.");
    expect(peer.socket.readyState).toBe(peer.socket.OPEN);
    const closed = new Promise<number>((resolve) => {
      peer.socket.once("close", resolve);
    });
    answer.tokens(peer, stream, 2, 5);
    answer.done(peer, stream);
    expect(await read(response)).toBe(answer.text);
    expect(await closed).toBe(1000);
    expect(states).toEqual(["connecting", "open", "open"]);
  });

  test("then HANDOFF: the answer goes on at the next origin", async () => {
    const link = await stage.linked([home, other]);
    const { response, peer, stream } = await stage.begun(link);
    peer.send([Op.GOAWAY, 0, 10_000, "draining"]);
    const next = await stage.edge.connected(2);
    peer.send([Op.HANDOFF, stream, 2]);
    const { peer: at, stream: restarted, options } = await stage.edge.question(2);
    expect(at).toBe(next);
    expect(options).toMatchObject({ attempt: 2, continueIds: [idOf(1), idOf(2)] });
    answer.goOn(next, restarted);
    expect(await read(response)).toBe(answer.text);
  });

  // A socket that breaks meanwhile leads back to the draining origin: the answer is there.
  test("and a lost socket: the answer is resumed where it runs", async () => {
    const link = await stage.linked([home, other, home]);
    const { response, peer } = await stage.begun(link);
    peer.send([Op.GOAWAY, 0, 10_000, "draining"]);
    await expect.poll(() => link.hello?.epoch).toBe("epoch-2");
    peer.socket.terminate();
    const back = await stage.edge.connected(3);
    expect(stage.offered(3)).toEqual(["resume.token-1"]);
    answer.resume(back, await back.next<Resume>(Op.RESUME));
    expect(await read(response)).toBe(answer.text);
  });

  // There is no other origin yet: the draining one is not asked again and again in a rush.
  test("with nowhere to go waits for another", async () => {
    const link = await stage.linked([home, home, other]);
    const { response, peer, stream } = await stage.begun(link);
    peer.send([Op.GOAWAY, 0, 10_000, "draining"]);
    const [refused, next] = [await stage.edge.connected(2), await stage.edge.connected(3)];
    const waiting = link.start(question);
    const asked = await stage.edge.question(2);
    expect(asked.peer).toBe(next);
    expect(refused.received).toEqual([]);
    new ScriptedAnswer(["Yes."], "response-2").started(next, asked.stream);
    next.tokens(asked.stream, ["Yes."]);
    next.done(asked.stream, ["Yes."]);
    expect(await read(waiting)).toBe("Yes.");
    answer.tokens(peer, stream, 2, 5);
    answer.done(peer, stream);
    expect(await read(response)).toBe(answer.text);
  });

  // START and GOAWAY crossed: the question is for the next origin, as if asked there first.
  test("that crossed a START", async () => {
    const link = await stage.linked([home, other]);
    const response = link.start(question);
    const first = await stage.edge.question(1);
    first.peer.send([Op.GOAWAY, 0, 10_000, "draining"]);
    first.peer.send([Op.ERROR, first.stream, "draining", "ask on the next one", 1]);
    const second = await stage.edge.question(2);
    expect(second.peer).toBe(await stage.edge.connected(2));
    expect(second.options).toEqual(first.options);
    answer.started(second.peer, second.stream);
    answer.tokens(second.peer, second.stream, 0, 5);
    answer.done(second.peer, second.stream);
    expect(await read(response)).toBe(answer.text);
  });

  // It was going away when the socket opened: nothing is asked there at all.
  test("that comes with HELLO", async () => {
    const leaving: typeof home = (peer) => {
      home(peer);
      peer.send([Op.GOAWAY, 0, 10_000, "draining"]);
    };
    const link = await stage.linked([leaving, other]);
    const response = link.start(question);
    const { peer, stream, options } = await stage.edge.question();
    expect(peer).toBe(await stage.edge.connected(2));
    expect(options).toMatchObject({ attempt: 1 });
    peer.answer(stream, ["Yes."]);
    expect(await read(response)).toBe("Yes.");
    expect(stage.edge.peers[0]?.received).toEqual([]);
  });

  // The session grows old: a new ticket, and what is not over when the old socket ends is resumed by it.
  test("of a session that expires: answers move to the new one", async () => {
    const link = await stage.linked();
    const { response, peer } = await stage.begun(link);
    peer.send([Op.GOAWAY, 0, 10_000, "session_expired"]);
    const next = await stage.edge.connected(2);
    expect(stage.offered(2)).toEqual(["ticket.scripted"]);
    await expect.poll(() => link.hello).toBeDefined();
    peer.refuse("session_expired");
    answer.resume(next, await next.next<Resume>(Op.RESUME));
    expect(await read(response)).toBe(answer.text);
    expect(stage.edge.peers.length).toBe(2);
  });
});
