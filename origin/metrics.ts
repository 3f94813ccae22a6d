/**
 * What Prometheus scrapes. Where OpenTelemetry's GenAI conventions have a name, it is theirs, as Prometheus writes it
 * (`gen_ai.server.time_to_first_token` is gen_ai_server_time_to_first_token_seconds), with their buckets. What they lack has vLLM's
 * word behind our prefix (`vllm:num_requests_running` is millrace_num_requests_running): a colon is kept for recording rules.
 */
import { Counter, collectDefaultMetrics, Gauge, Histogram, type Metric, Registry } from "prom-client";
import { type ClassName, classNames } from "../shared/classes.js";
import { type FinishReason, finishReasons } from "../shared/protocol.js";
import type { InferenceLoad } from "./inference.js";
import { TokenHistogram } from "./tokenHistogram.js";

const ttftBucketsS = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10];
const tokenBucketsS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5];
const answerBucketsS = [0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 240];

export class Metrics {
  readonly #registry = new Registry();
  readonly #ttft = this.#histogram("gen_ai_server_time_to_first_token_seconds", "START received to first text released", ttftBucketsS);
  readonly #tpot = this.#histogram("gen_ai_server_time_per_output_token_seconds", "Mean time of an answer's later tokens", tokenBucketsS);
  readonly #duration = this.#histogram("gen_ai_server_request_duration_seconds", "START received to its end", answerBucketsS);
  readonly #itl = new TokenHistogram("millrace_inter_token_latency_seconds", "Between consecutive releases of an answer", tokenBucketsS);
  readonly #prompt = this.#counter("millrace_prompt_tokens_total", "Tokens of prompts taken", []);
  readonly #cached = this.#counter("millrace_prefix_cache_hits_total", "Tokens of ended answers' prompts found in memory", []);
  readonly #generation = this.#counter("millrace_generation_tokens_total", "Tokens sampled for ended answers", []);
  readonly #success = this.#counter("millrace_request_success_total", "Answers that ended with DONE", ["finished_reason"]);
  readonly #failure = this.#counter("millrace_request_failure_total", "Answers that ended with ERROR", ["code"]);
  readonly #slo = this.#counter("millrace_slo_total", "Answers that ended with DONE, by whether their promise was kept", ["class", "good"]);
  readonly #abandoned = this.#counter("millrace_abandoned_total", "Answers that nobody came back for within their grace", []);
  readonly #refused = this.#counter("millrace_upgrades_refused_total", "WebSocket upgrades refused", ["code"]);
  #load: (() => InferenceLoad) | undefined;
  #sockets: () => { open: number; backpressured: number } = () => ({ open: 0, backpressured: 0 });

  constructor() {
    // Node's own: event loop delay, heap, garbage collection, CPU.
    collectDefaultMetrics({ register: this.#registry });
    for (const name of classNames) for (const histogram of [this.#ttft, this.#tpot, this.#duration]) histogram.zero({ class: name });
    // The type asks for all that its own classes do; the registry asks for what this has.
    this.#registry.registerMetric(this.#itl as unknown as Metric);
    for (const reason of finishReasons) this.#success.inc({ finished_reason: reason }, 0);
    this.#gauge("millrace_num_requests_running", "Requests that hold a slot", () => this.#load?.().running);
    this.#gauge("millrace_num_requests_waiting", "Requests that wait for a slot", () => this.#load?.().waiting);
    this.#gauge("millrace_slots", "Requests that can run at once", () => this.#load?.().slots);
    this.#gauge("millrace_kv_cache_mapped_bytes", "KV memory mapped", () => this.#load?.().kvBytesMapped);
    this.#gauge("millrace_kv_cache_held_bytes", "KV memory mapped that holds tokens", () => this.#load?.().kvBytesHeld);
    this.#gauge("millrace_kv_cache_max_bytes", "KV memory that may be mapped", () => this.#load?.().kvBytesMax);
    this.#watchMisses();
    this.#gauge("millrace_sockets_open", "WebSockets open", () => this.#sockets().open);
    this.#gauge("millrace_sockets_backpressured", "WebSockets whose client reads too slowly", () => this.#sockets().backpressured);
  }

  /** What is read at each scrape. */
  watchInference(load: () => InferenceLoad): void {
    this.#load = load;
  }

  watchSockets(count: () => { open: number; backpressured: number }): void {
    this.#sockets = count;
  }

  taken(promptTokens: number): void {
    this.#prompt.inc(promptTokens);
  }

  firstToken(name: ClassName, ms: number): void {
    this.#ttft.observe({ class: name }, ms / 1_000);
  }

  laterToken(name: ClassName, ms: number): void {
    this.#itl.observe(name, ms / 1_000);
  }

  done(
    name: ClassName,
    answer: { reason: FinishReason; cachedTokens: number; tokens: number; durationMs: number; decodeMs: number; isGood: boolean },
  ): void {
    this.#success.inc({ finished_reason: answer.reason });
    this.#slo.inc({ class: name, good: String(answer.isGood) });
    this.#cached.inc(answer.cachedTokens);
    this.#generation.inc(answer.tokens);
    this.#duration.observe({ class: name }, answer.durationMs / 1_000);
    if (answer.tokens > 1) this.#tpot.observe({ class: name }, answer.decodeMs / (answer.tokens - 1) / 1_000);
  }

  abandoned(): void {
    this.#abandoned.inc();
  }

  failed(code: string): void {
    this.#failure.inc({ code });
  }

  upgradeRefused(code: string): void {
    this.#refused.inc({ code });
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  scrape(): Promise<string> {
    return this.#registry.metrics();
  }

  #histogram(name: string, help: string, buckets: number[]): Histogram<"class"> {
    return new Histogram({ name, help, buckets, labelNames: ["class"], registers: [this.#registry] });
  }

  #counter<Label extends string>(name: string, help: string, labelNames: Label[]): Counter<Label> {
    return new Counter({ name, help, labelNames, registers: [this.#registry] });
  }

  /** The engine counts them; a scrape reads how far it got. */
  #watchMisses(): void {
    const read = (): Readonly<Record<string, number>> => this.#load?.().misses ?? {};
    new Counter({
      name: "millrace_deadline_misses_total",
      help: "Tokens that came after they were due, by what held them up",
      labelNames: ["cause"],
      registers: [this.#registry],
      collect() {
        this.reset();
        for (const [cause, count] of Object.entries(read())) this.inc({ cause }, count);
      },
    });
  }

  #gauge(name: string, help: string, read: () => number | undefined): void {
    new Gauge({
      name,
      help,
      registers: [this.#registry],
      collect() {
        this.set(read() ?? 0);
      },
    });
  }
}
