/** One origin's life: it listens at once, loads its model, answers, and drains. */
import { type KeyObject, randomUUID } from "node:crypto";
import { setTimeout } from "node:timers/promises";
import { MillraceError } from "../shared/errors.js";
import { subprotocol } from "../shared/protocol.js";
import { verifyAssertion } from "./assertion.js";
import { bounds } from "./bounds.js";
import { PromptBuilder } from "./chat/prompt.js";
import { Turnstile } from "./chat/turnstile.js";
import { isText, type Vocabulary } from "./chat/vocabulary.js";
import { httpRoutes, type OriginState, refusal } from "./http.js";
import type { Inference } from "./inference.js";
import { Metrics } from "./metrics.js";
import { FrameClock } from "./pacing.js";
import { Responses } from "./responses.js";
import { Session } from "./session.js";
import { type Connection, listen, type Server, type UpgradeRequest } from "./socket.js";
import { ServiceTerms } from "./terms.js";

export interface OriginOptions {
  host: string;
  /** 0 lets the system choose. */
  port: number;
  /** The audience that the edge's assertions have to name. */
  name: string;
  edgeKey: KeyObject;
  /** What is promised to whom; by default that of shared/classes.ts. */
  terms?: ServiceTerms;
  /** How long a drain lets running answers finish. */
  drainMs: number;
  load: () => Promise<{ inference: Inference; vocabulary: Vocabulary }>;
  log: (line: string) => void;
}

/** The port cannot be had; the message says which and what to do. */
export class PortError extends Error {
  override readonly name = "PortError";
}

export class Origin {
  readonly #epoch = randomUUID();
  readonly #metrics = new Metrics();
  readonly #sessions = new Set<Session>();
  #server: Server | undefined;
  #ticker: NodeJS.Timeout | undefined;
  /** Both stand once the model is loaded. */
  #inference: Inference | undefined;
  #responses: Responses | undefined;
  #draining: Promise<void> | undefined;
  /** When those who are still here are cut off; set once it drains. */
  #endsMs = 0;
  #onLeft: (() => void) | undefined;

  private constructor(private readonly options: OriginOptions) {}

  /** Listens; the model is loaded by `load()`. @throws PortError */
  static async listen(options: OriginOptions): Promise<Origin> {
    const origin = new Origin(options);
    const { host, port } = options;
    origin.#server = await listen(host, port, {
      admit: (request) => origin.#admit(request),
      http: httpRoutes(() => origin.state, origin.#epoch, origin.#metrics),
    });
    if (!origin.#server)
      throw new PortError(
        `port ${port} on ${host} cannot be had, most likely because it is in use: stop who has it, or choose another with --port N (or MILLRACE_PORT)`,
      );
    origin.#metrics.watchSockets(() => (origin.#server as Server).sockets);
    origin.#ticker = setInterval(() => {
      origin.#responses?.tick();
      for (const session of origin.#sessions) session.tick();
    }, bounds.tickMs);
    return origin;
  }

  get port(): number {
    return (this.#server as Server).port;
  }

  get state(): OriginState {
    if (this.#draining) return "draining";
    return this.#responses ? "ready" : "loading";
  }

  /** Loads the model; until then upgrades are answered with `model_loading`. @throws what the loader throws. */
  async load(): Promise<Inference> {
    const { inference, vocabulary } = await this.options.load();
    const { log, terms = new ServiceTerms() } = this.options;
    const prompts = new PromptBuilder(vocabulary, inference.model.contextTokens);
    this.#metrics.watchInference(() => inference.load());
    this.#inference = inference;
    const clocks = { clock: new FrameClock(), now: () => performance.now() };
    const isSpecial = (token: number): boolean => !isText(vocabulary, token);
    const services = { inference, turnstile: new Turnstile(), prompts, isSpecial, terms, metrics: this.#metrics, log, ...clocks };
    this.#responses = new Responses(services, this.#epoch);
    return inference;
  }

  /** Takes nothing new, lets what runs finish or cuts it at the deadline, then closes everything. Safe to call twice. */
  drain(): Promise<void> {
    this.#draining ??= this.#drain();
    return this.#draining;
  }

  async #drain(): Promise<void> {
    const { drainMs } = this.options;
    this.#endsMs = performance.now() + drainMs;
    const drained = this.#responses?.drain(drainMs);
    for (const session of [...this.#sessions]) session.goAway("draining", drainMs);
    await drained;
    await this.#left();
    clearInterval(this.#ticker);
    for (const session of [...this.#sessions]) session.end();
    await this.#inference?.close();
    await this.#server?.close();
  }

  /** Resolves once all sockets are gone that were told to go, which those without answers do soon, or at the deadline. */
  async #left(): Promise<void> {
    if (this.#sessions.size === 0) return;
    const gone = new Promise<void>((resolve) => {
      this.#onLeft = resolve;
    });
    await Promise.race([gone, setTimeout(this.#endsMs - performance.now(), undefined, { ref: false })]);
  }

  #admit(request: UpgradeRequest): ReturnType<Parameters<typeof listen>[2]["admit"]> {
    try {
      const claims = verifyAssertion(request.authorization, this.options.edgeKey, this.options.name, Date.now() / 1_000);
      const offered = request.subprotocols.split(",").map((name) => name.trim());
      if (!offered.includes(subprotocol))
        throw new MillraceError(
          "version_unsupported",
          `the subprotocols offered are ${JSON.stringify(offered)}; this origin speaks ${subprotocol}`,
        );
      if (claims.epoch !== undefined && claims.epoch !== this.#epoch)
        throw new MillraceError("epoch_changed", `this run of the origin is ${this.#epoch}, not ${claims.epoch}`, bounds.retryAfterMs);
      const [inference, responses] = this.#whatAnswers(claims.returning === true);
      const info = {
        epoch: this.#epoch,
        engine: inference.kind,
        model: inference.model.name,
        contextTokens: inference.model.contextTokens,
      };
      return { connect: (socket) => this.#connect(new Session(socket, claims, responses, info)) };
    } catch (error) {
      const known =
        error instanceof MillraceError ? error : new MillraceError("internal", `the origin failed on this upgrade: ${String(error)}`);
      this.#metrics.upgradeRefused(known.code);
      return { refuse: refusal(known) };
    }
  }

  /** @throws MillraceError saying why nothing answers now. @param isReturning those who had answers here may come back for them. */
  #whatAnswers(isReturning: boolean): [Inference, Responses] {
    if (this.#draining && !(isReturning && this.#responses && this.#responses.count > 0))
      throw new MillraceError("draining", "this origin is stopping and takes nothing new", bounds.retryAfterMs);
    if (!this.#inference || !this.#responses)
      throw new MillraceError("model_loading", "this origin is loading its model", bounds.retryAfterMs);
    if (this.#sessions.size >= bounds.socketsMax)
      throw new MillraceError("overloaded", `this origin has ${this.#sessions.size} connections, the most it takes`, bounds.retryAfterMs);
    return [this.#inference, this.#responses];
  }

  /** Keeps account of a session for as long as its socket lives. */
  #connect(session: Session): Connection {
    this.#sessions.add(session);
    return {
      open: () => {
        session.open();
        if (this.#draining) session.goAway("draining", Math.max(0, this.#endsMs - performance.now()));
      },
      drained: () => session.drained(),
      receive: (bytes, isBinary) => session.receive(bytes, isBinary),
      closed: () => {
        this.#sessions.delete(session);
        session.closed();
        if (this.#sessions.size === 0) this.#onLeft?.();
      },
    };
  }
}
