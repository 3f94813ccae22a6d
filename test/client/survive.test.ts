/** Whatever happens between the first token and the last, in whichever order: the reader's one iterator yields the text, once. */
import fc from "fast-check";
import { afterEach, expect, test, vi } from "vitest";
import { WebSocket } from "ws";
import { Link } from "../../client/link.js";
import { Op, type Resume, type Start } from "../../shared/protocol.js";
import { idOf, type Peer, ScriptedEdge } from "../support/scriptedEdge.js";
import { question, read, ScriptedAnswer } from "./support.js";

/** What happens next: so many tokens in a frame, a frame once more, or the end of the socket, the origin, or the origin's patience. */
type Happening = { tokens: number } | "again" | "cut" | "death" | "handoff" | "expired session";

/** An origin that dies and is replaced, and loses its sockets, by a plan; after the plan it says all that is left. */
class DoomedOrigin {
  epoch = 1;
  attempts = 0;
  readonly #plan: Happening[];

  constructor(
    private readonly answer: ScriptedAnswer,
    plan: readonly Happening[],
  ) {
    this.#plan = [...plan];
  }

  greet(peer: Peer): void {
    peer.hello({ epoch: `epoch-${this.epoch}`, resumeToken: `token-${this.epoch}` });
  }

  start(peer: Peer, [, stream, , { attempt = 1, continueIds = [] }]: Start): void {
    expect(continueIds).toEqual(continueIds.map((_, at) => idOf(at + 1)));
    expect(attempt).toBeGreaterThan(this.attempts);
    this.attempts = attempt;
    this.answer.started(peer, stream);
    this.#serve(peer, stream, continueIds.length);
  }

  resume(peer: Peer, [, stream, epoch, response, seq]: Resume): void {
    expect(response).toBe(this.answer.id);
    if (epoch !== `epoch-${this.epoch}`) {
      peer.send([Op.GONE, stream, epoch]);
      return;
    }
    this.answer.resumed(peer, stream);
    this.#serve(peer, stream, seq);
  }

  #serve(peer: Peer, stream: number, from: number): void {
    const { length } = this.answer.texts;
    let seq = from;
    let before = from;
    let happening = this.#plan.shift();
    for (; typeof happening === "object" || happening === "again"; happening = this.#plan.shift()) {
      if (happening !== "again") {
        before = seq;
        seq = Math.min(seq + happening.tokens, length);
      }
      if (seq > before) this.answer.tokens(peer, stream, before, seq);
    }
    if (happening) {
      this.#end(peer, stream, seq, happening);
      return;
    }
    if (seq < length) this.answer.tokens(peer, stream, seq, length);
    this.answer.done(peer, stream);
  }

  #end(peer: Peer, stream: number, seq: number, how: Exclude<Happening, object | "again">): void {
    if (how === "death" || how === "handoff") this.epoch++;
    if (how === "handoff") {
      peer.send([Op.GOAWAY, 0, 1_000, "draining"]);
      peer.send([Op.HANDOFF, stream, seq]);
    } else if (how === "expired session") peer.refuse("session_expired");
    else peer.socket.terminate();
  }
}

let edge: ScriptedEdge;
let link: Link | undefined;

afterEach(async () => {
  link?.close();
  vi.restoreAllMocks();
  await edge.stop();
});

test("any cuts, deaths, hand-offs and repetitions leave the text whole", async () => {
  // No client waits for chance: it is the order of things that is tried here.
  vi.spyOn(Math, "random").mockReturnValue(0);
  edge = await ScriptedEdge.start();
  const frame = fc.record({ tokens: fc.integer({ min: 1, max: 4 }) });
  const kind = fc.constantFrom<Happening>("again", "cut", "death", "handoff", "expired session");
  const plans = fc.array(fc.oneof({ weight: 3, arbitrary: frame }, { weight: 2, arbitrary: kind }), { maxLength: 14 });
  const texts = fc.array(fc.string({ unit: "grapheme", maxLength: 3 }), { minLength: 1, maxLength: 12 });
  await fc.assert(
    fc.asyncProperty(texts, plans, async (tokens, plan) => {
      const answer = new ScriptedAnswer(tokens);
      const origin = new DoomedOrigin(answer, plan);
      edge.script = {
        onOpen: (peer) => origin.greet(peer),
        onMessage: (peer, message) => {
          if (message[0] === Op.START) origin.start(peer, message);
          if (message[0] === Op.RESUME) origin.resume(peer, message);
        },
      };
      link = new Link({ edge: edge.url, WebSocket });
      const response = link.start(question);
      expect(await read(response)).toBe(answer.text);
      expect(response).toMatchObject({ text: answer.text, reason: "stop", error: undefined, attempts: origin.attempts });
      link.close();
    }),
    { numRuns: 60, interruptAfterTimeLimit: 20_000 },
  );
});
