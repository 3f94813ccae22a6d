/**
 * `npm run chat`: asks in the terminal, through the running edge, and through one that it starts where none runs. Answers go to
 * stdout, everything else to stderr. Exit status: 0 answered, 1 failed, 2 wrong arguments, 130 stopped by Ctrl-C.
 */
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { WebSocket } from "ws";
import {
  type AskOptions,
  Conversation,
  type HelloInfo,
  Link,
  type LinkState,
  MillraceError,
  type Response,
  type ServerMessage,
} from "../client/index.js";
import { limits } from "../shared/limits.js";
import type { Stack } from "./start.js";

const defaultEdge = "http://127.0.0.1:8787";
/** How long a model may take to load. */
const loadingMsMax = 120_000;
/** Lines kept of what a stack of our own says; they are shown when something fails. */
const logLinesMax = 20;

const usage = `npm run chat -- [options] [question]

Without a question it is a conversation: Ctrl-C stops an answer, a second one or Ctrl-D leaves.

  --edge URL         the edge to ask; default ${defaultEdge}, started if it does not run
  --token JWT        for an edge that takes no anonymous visitors; also MILLRACE_TOKEN
  --system TEXT      the system message
  --max-tokens N     --temperature T     --seed N
  --json             one line for each frame that arrives, in place of the text
  --help`;

interface Arguments {
  question: string;
  edge: string | undefined;
  token: string | undefined;
  system: string | undefined;
  json: boolean;
  options: AskOptions;
}

/** Arguments that cannot be meant: exit status 2, with the usage. */
class UsageError extends Error {}

function readArguments(args: string[]): Arguments | "help" {
  const text = { type: "string" } as const;
  const flag = { type: "boolean" } as const;
  const options = { edge: text, token: text, system: text, "max-tokens": text, temperature: text, seed: text, json: flag, help: flag };
  let parsed: ReturnType<typeof parseArgs<{ options: typeof options; allowPositionals: true }>>;
  try {
    parsed = parseArgs({ args, options, allowPositionals: true });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
  const { values, positionals } = parsed;
  if (values.help) return "help";
  if (values.edge !== undefined && !/^https?:\/\/./.test(values.edge))
    throw new UsageError(`--edge is ${JSON.stringify(values.edge)}, not an http: or https: address`);
  // As on the page: a small model repeats itself unless each repetition costs a little more.
  const start: AskOptions = { overflow: "drop_oldest", repetitionPenalty: 1.05, frequencyPenalty: 0.15 };
  if (values["max-tokens"] !== undefined) start.maxTokens = number("--max-tokens", values["max-tokens"], 1, 0xffff_ffff, true);
  if (values.temperature !== undefined) start.temperature = number("--temperature", values.temperature, 0, 10, false);
  if (values.seed !== undefined) start.seed = number("--seed", values.seed, 0, Number.MAX_SAFE_INTEGER, true);
  return {
    question: positionals.join(" ").trim(),
    edge: values.edge,
    token: values.token ?? process.env.MILLRACE_TOKEN,
    system: values.system,
    json: values.json ?? false,
    options: start,
  };
}

function number(name: string, text: string, min: number, max: number, integer: boolean): number {
  const value = text.trim() === "" ? Number.NaN : Number(text);
  if (!(value >= min && value <= max) || (integer && !Number.isSafeInteger(value)))
    throw new UsageError(`${name} is ${JSON.stringify(text)}, not ${integer ? "an integer" : "a number"} from ${min} to ${max}`);
  return value;
}

/** A terminal's conversation: one answer at a time, and what Ctrl-C means just now. */
class Terminal {
  #edge: string;
  #link: Link | undefined;
  #conversation: Conversation | undefined;
  #stack: Stack | undefined;
  #response: Response | undefined;
  #interrupted = false;
  /** What a stack of our own said last. */
  readonly log: string[] = [];

  constructor(private readonly given: Arguments) {
    this.#edge = given.edge ?? defaultEdge;
  }

  /** Connects before the first question, so that what is wrong is said at once. @throws MillraceError why there is no connection. */
  async open(): Promise<void> {
    await this.#findEdge();
    const { model, engine } = await this.#connect();
    const simulated = engine === "simulated" ? " (simulated engine: no model answers)" : "";
    say(`${model}${simulated} on ${this.#edge}`);
  }

  async close(): Promise<void> {
    this.#link?.close();
    await this.#stack?.stop();
  }

  /** Streams one answer. @returns whether it was stopped. @throws MillraceError */
  async ask(question: string): Promise<boolean> {
    if (!this.#conversation) throw new Error("a question comes before the connection");
    const response = this.#conversation.ask(question);
    this.#response = response;
    this.#interrupted = false;
    response.onQueued = (place) => say(place === 1 ? "next in the queue" : `number ${place} in the queue`);
    try {
      for await (const delta of response) if (!this.given.json) process.stdout.write(shown(delta));
    } finally {
      this.#response = undefined;
      if (!this.given.json && response.text !== "" && !response.text.endsWith("\n")) process.stdout.write("\n");
    }
    say(summary(response));
    return response.reason === "cancelled";
  }

  /** @returns whether there was an answer to stop; a second call for the same answer says no. */
  interrupt(): boolean {
    if (!this.#response || this.#interrupted) return false;
    this.#interrupted = true;
    this.#response.cancel();
    return true;
  }

  /** The link keeps connected from here on; what becomes of it later is told, and is no reason to end. */
  async #connect(): Promise<HelloInfo> {
    const { token, json, options, system } = this.given;
    const onMessage = (message: ServerMessage): void => {
      process.stdout.write(`${JSON.stringify(message)}\n`);
    };
    const optional = { ...(token === undefined ? {} : { token }), ...(json ? { onMessage } : {}) };
    let onState: (state: LinkState) => void = () => {};
    const link = new Link({ edge: this.#edge, WebSocket, ...optional, onState: (state) => onState(state) });
    this.#link = link;
    this.#conversation = new Conversation((messages, asked) => link.start(messages, asked), options, system);
    const first = new Promise<HelloInfo>((resolve, reject) => {
      onState = firstConnection(resolve, reject);
    });
    link.open();
    const hello = await first;
    onState = laterConnections();
    return hello;
  }

  /** Where no edge was named and none runs at the usual place, starts one that lasts as long as this conversation. */
  async #findEdge(): Promise<void> {
    if (this.given.edge !== undefined || (await isThere(defaultEdge))) return;
    say(`no edge runs at ${defaultEdge}: starting one for this conversation`);
    const { startStack } = await import("./start.js");
    const onLine = (line: string): void => {
      this.log.push(line);
      if (this.log.length > logLinesMax) this.log.shift();
    };
    this.#stack = await startStack({ port: 0, originPort: 0, onLine });
    this.#edge = this.#stack.edgeUrl;
  }
}

/** Resolves with the first connection, for which a model may take its time to load; rejects with what else keeps it away. */
function firstConnection(resolve: (hello: HelloInfo) => void, reject: (error: MillraceError) => void): (state: LinkState) => void {
  const patience = performance.now() + loadingMsMax;
  let told = false;
  return (state) => {
    if (state.kind === "open") return resolve(state.hello);
    if (state.kind === "connecting") return;
    const isLoading = state.error.code === "model_loading" && performance.now() < patience;
    if (!isLoading) return reject(state.error);
    if (!told) say("the model is loading");
    told = true;
  };
}

/** Says once why there is no connection any more, and when there is one again. */
function laterConnections(): (state: LinkState) => void {
  let isDown = false;
  return (state) => {
    if (state.kind === "connecting") return;
    if (state.kind === "open") {
      if (isDown) say("connected again");
      isDown = false;
      return;
    }
    if (!isDown) say(`${explained(state.error)}${state.kind === "waiting" ? "; trying again" : ""}`);
    isDown = true;
  };
}

/** Whether anything answers HTTP there. */
async function isThere(edge: string): Promise<boolean> {
  try {
    await fetch(new URL("/healthz", edge), { signal: AbortSignal.timeout(limits.openMs) });
    return true;
  } catch {
    return false;
  }
}

/** A conversation, a line a question, until the input ends. @returns the exit status. */
async function converse(terminal: Terminal): Promise<number> {
  const lines = createInterface({ input: process.stdin, output: process.stderr, prompt: "› ", terminal: process.stdin.isTTY === true });
  let status = 0;
  const interrupted = (): void => {
    if (!terminal.interrupt()) lines.close();
  };
  lines.on("SIGINT", interrupted);
  process.on("SIGINT", interrupted);
  if (process.stdin.isTTY) lines.prompt();
  for await (const line of lines) {
    if (line.trim() !== "")
      try {
        await terminal.ask(line.trim());
        status = 0;
      } catch (error) {
        complain(terminal, error);
        status = 1;
      }
    if (process.stdin.isTTY) lines.prompt();
  }
  return status;
}

/** @returns the exit status. */
async function answerOne(terminal: Terminal, question: string): Promise<number> {
  process.on("SIGINT", () => {
    if (!terminal.interrupt()) process.exit(130);
  });
  return (await terminal.ask(question)) ? 130 : 0;
}

function summary(response: Response): string {
  const { firstTokenMs, tokensPerSecond, gapP99Ms } = response.measures;
  const parts = [`${response.usage?.completionTokens ?? 0} tokens`];
  if (firstTokenMs !== undefined) parts.push(`first after ${Math.round(firstTokenMs)} ms`);
  if (tokensPerSecond !== undefined) parts.push(`${tokensPerSecond.toFixed(1)} tokens/s`);
  if (gapP99Ms !== undefined) parts.push(`p99 gap ${Math.round(gapP99Ms)} ms`);
  if (response.droppedTurns > 0) parts.push(`the ${response.droppedTurns} oldest messages did not fit`);
  if (response.reason !== "stop") parts.push(response.reason === "length" ? "cut at the length limit" : "stopped");
  return parts.join(", ");
}

/** What a model writes must not steer the terminal: control characters but line breaks and tabs are left out. */
function shown(text: string): string {
  return text.replace(/[^\P{Cc}\n\t]/gu, "");
}

function explained(error: unknown): string {
  if (error instanceof MillraceError) return `${error.code}: ${error.message}`;
  return error instanceof Error ? error.message : String(error);
}

/** Says what went wrong, under what a stack of our own said of it. */
function complain({ log }: Terminal, error: unknown): void {
  for (const line of log.splice(0)) say(`| ${line}`);
  say(explained(error));
}

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

async function main(): Promise<number> {
  const given = readArguments(process.argv.slice(2));
  if (given === "help") {
    process.stdout.write(`${usage}\n`);
    return 0;
  }
  // Whoever reads the answer may leave early, as head does.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));
  const terminal = new Terminal(given);
  try {
    await terminal.open();
    return await (given.question === "" ? converse(terminal) : answerOne(terminal, given.question));
  } catch (error) {
    complain(terminal, error);
    return 1;
  } finally {
    await terminal.close();
  }
}

try {
  process.exitCode = await main();
} catch (error) {
  say(error instanceof UsageError ? `${error.message}\n\n${usage}` : explained(error));
  process.exitCode = error instanceof UsageError ? 2 : 1;
}
