/** One client under disturbance: it asks one question after another over a connection of its own, and checks every answer to the byte. */
import { SignJWT } from "jose";
import { WebSocket } from "ws";
import { Link, type Response, type SocketConstructor } from "../../client/index.js";
import { Op, type ServerMessage } from "../../shared/protocol.js";
import type { Random } from "../random.js";
import { ChaosProxy } from "./proxy.js";
import type { Question } from "./questions.js";
import type { Tally } from "./tally.js";

/** The longest that an answer may take, however often it is disturbed. */
const answerMsMax = 120_000;
/** Some readers take so many tokens at a time, and a pause after each. */
const windowTokens = 8;
const pauseMs = 40;

export class Rider {
  readonly #link: Link;
  /** The answer that runs. */
  #running: Response | undefined;
  /** Streams that have had their last message. */
  readonly #ended = new Set<number>();

  private constructor(
    readonly name: string,
    readonly proxy: ChaosProxy,
    token: string,
    private readonly random: Random,
    private readonly tally: Tally,
  ) {
    this.#link = new Link({
      edge: `http://127.0.0.1:${proxy.port}`,
      token,
      WebSocket: WebSocket as unknown as SocketConstructor,
      onMessage: (message) => this.#watch(message),
    });
  }

  /** @param edgePort where the edge is, asked for each connection. */
  static async board(name: string, edgePort: () => number, secret: string, random: Random, tally: Tally): Promise<Rider> {
    const token = await new SignJWT({ tenant: "chaos", class: "voice" })
      .setProtectedHeader({ alg: "HS256" })
      .setSubject(name)
      .setExpirationTime("1h")
      .sign(new TextEncoder().encode(secret));
    return new Rider(name, await ChaosProxy.listen(edgePort), token, random, tally);
  }

  /** Its answer is between its first token and its last. */
  get isMidAnswer(): boolean {
    return this.#running !== undefined && !this.#running.ended && this.#running.seq > 0;
  }

  /** The one that runs, or ran last. */
  get answer(): Response | undefined {
    return this.#running;
  }

  /** Asks and reads to the end. @throws Error saying what was wrong with the answer. */
  async ask(question: Question): Promise<void> {
    const isSlow = this.random.chance(0.3);
    const response = this.#link.start(question.messages, question.options, isSlow ? { window: windowTokens } : {});
    this.#running = response;
    const timer = setTimeout(() => this.tally.wrong(`${this.name}: ${question.name} took over ${answerMsMax} ms`), answerMsMax);
    try {
      let text = "";
      for await (const delta of response) {
        text += delta;
        if (isSlow) await new Promise((resolve) => setTimeout(resolve, pauseMs));
      }
      await response.done;
      if (text !== question.expected)
        this.tally.wrong(`${this.name}: ${question.name} is not what it should be: ${differing(text, question.expected)}`);
      if (response.attempts > 1) this.tally.count("restart", response.attempts - 1);
      if ((response.timings?.parkedMs ?? 0) > 0) this.tally.count("park");
      if (response.timings?.gapCause === "outbox") this.tally.count("held back");
      this.tally.answered++;
    } catch (error) {
      this.tally.wrong(`${this.name}: ${question.name} ended with ${String(error)} after token ${response.seq}`);
    } finally {
      clearTimeout(timer);
      this.#running = undefined;
    }
  }

  /** An answer with nothing expected of it. */
  async read({ messages, options }: Pick<Question, "messages" | "options">): Promise<string> {
    const response = this.#link.start(messages, options);
    await response.done;
    return response.text;
  }

  async leave(): Promise<void> {
    this.#link.close();
    await this.proxy.close();
  }

  /** Each stream has one last message, after which nothing of it comes; and what was gone through is counted. */
  #watch(message: ServerMessage): void {
    const [op, stream] = message;
    // Streams are numbered on from socket to socket.
    if (stream !== 0 && op !== Op.TRUNCATED) {
      if (this.#ended.has(stream)) this.tally.wrong(`${this.name}: op ${op} came after the last message of stream ${stream}`);
      if (lastOps.has(op)) this.#ended.add(stream);
    }
    if (op === Op.RESUMED && message[3] > (this.#running?.seq ?? 0)) this.tally.count("replay");
    if (op === Op.RESUMED) this.tally.count("resume");
    if (op === Op.MISROUTED) this.tally.count("misroute");
    if (op === Op.GONE) this.tally.count("gone");
    if (op === Op.HANDOFF) this.tally.count("hand-off");
  }
}

const lastOps: ReadonlySet<number> = new Set([Op.DONE, Op.ERROR, Op.MISROUTED, Op.EXPIRED, Op.GONE, Op.HANDOFF]);

function differing(got: string, expected: string): string {
  let at = 0;
  while (at < got.length && got[at] === expected[at]) at++;
  const shown = (text: string): string => JSON.stringify(text.slice(Math.max(0, at - 10), at + 20));
  return `${got.length} of ${expected.length} characters; from ${at} on ${shown(got)} in place of ${shown(expected)}`;
}
