/** Riders under a storm: connections are disturbed at seeded random moments on both sides of the edge, and processes die on a schedule. */
import { Random } from "../random.js";
import { type Disturbance, disturbances } from "./proxy.js";
import { Questions } from "./questions.js";
import { Rider } from "./rider.js";
import { ChaosStack, type OriginPlace } from "./stack.js";
import { Tally } from "./tally.js";
import { Wanderer } from "./wanderer.js";

export interface StormOptions {
  seed: number;
  answers: number;
  riders: number;
  /** Tokens of an answer, from half of it to half as much again. */
  answerTokens: number;
  tokensPerSecond: number;
  /** Of connections, a second, over all riders. */
  disturbancesPerSecond: number;
  /** Between the ends of one process and the next; 0: none dies. */
  deathEveryMs: number;
  say: (line: string) => void;
}

const customerSecret = "a secret that is known to everybody who reads this test";
/** How long a draining origin lets answers go on before it hands them off. */
const drainMs = 300;
/** Longer than a client waits for an origin that cannot be reached: it then goes elsewhere. */
const downMs = 6_000;
const settleMsMax = 15_000;

export async function runStorm(options: StormOptions): Promise<Tally> {
  const { seed, answers, riders: count, say } = options;
  const random = new Random(seed);
  const tally = new Tally();
  const questions = new Questions(options.answerTokens);
  const slots = String(2 * count);
  const originArgs = ["--inference", "simulated", "--simulated-rate", String(options.tokensPerSecond)].concat([
    "--simulated-answer",
    "1000000",
    "--ctx",
    "8192",
    "--slots",
    slots,
  ]);
  const stack = await ChaosStack.start({ originArgs, drainMs, customerSecret });
  const riders = await Promise.all(
    Array.from({ length: count }, (_, index) => Rider.board(`rider-${index}`, () => stack.edgePort, customerSecret, random, tally)),
  );
  const weather = new Weather(stack, riders, random, tally, options);
  const wanderer = new Wanderer(() => stack.edgePort, customerSecret, riders, tally);
  const begunMs = performance.now();
  try {
    weather.begin();
    wanderer.begin();
    let left = answers;
    await Promise.all(
      riders.map(async (rider) => {
        while (left-- > 0) {
          await rider.ask(await questions.next(random));
          if (tally.answered % 50 === 0) say(`${tally.answered} of ${answers} answers, ${tally.disturbances} disturbances`);
        }
      }),
    );
  } finally {
    await weather.end();
    await wanderer.end();
  }
  say(`${((performance.now() - begunMs) / 1_000).toFixed(0)} s`);
  await Promise.all(riders.map((rider) => rider.leave()));
  for (const [index, place] of stack.places.entries()) await checkEmpty(place.port, `origin-${index + 1}`, tally);
  await stack.stop();
  return tally;
}

/** Nothing runs or waits in an origin whose answers have all ended. */
async function checkEmpty(port: number, name: string, tally: Tally): Promise<void> {
  const until = performance.now() + settleMsMax;
  for (;;) {
    const metrics = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
    const read = (metric: string): number => Number(new RegExp(`^${metric} (\\d+)`, "m").exec(metrics)?.[1]);
    const [running, waiting] = [read("millrace_num_requests_running"), read("millrace_num_requests_waiting")];
    if (running === 0 && waiting === 0) return;
    if (performance.now() > until)
      return tally.wrong(`${name} has ${running} answers running and ${waiting} waiting, though all have ended`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

class Weather {
  #timers: NodeJS.Timeout[] = [];
  #dying = Promise.resolve();
  #deaths = 0;

  constructor(
    private readonly stack: ChaosStack,
    private readonly riders: readonly Rider[],
    private readonly random: Random,
    private readonly tally: Tally,
    private readonly options: StormOptions,
  ) {}

  begin(): void {
    const { disturbancesPerSecond, deathEveryMs } = this.options;
    this.#timers.push(setInterval(() => this.#disturb(), 1_000 / disturbancesPerSecond));
    if (deathEveryMs > 0)
      this.#timers.push(
        setInterval(() => {
          this.#dying = this.#dying.then(() => this.#die()).catch((error: unknown) => this.tally.wrong(`a process: ${String(error)}`));
        }, deathEveryMs),
      );
  }

  async end(): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    await this.#dying;
  }

  /** One rider in mid-answer, on one side of the edge. */
  #disturb(): void {
    const riding = this.riders.filter(({ isMidAnswer }) => isMidAnswer);
    if (riding.length === 0) return;
    const rider = this.random.pick(riding);
    const kind: Disturbance = this.random.pick(disturbances);
    if (this.random.chance(0.7)) {
      if (rider.proxy.disturb(kind)) this.tally.disturbed(`client ${kind}`);
      return;
    }
    for (const { proxy } of this.stack.places)
      if (proxy.disturb(kind, rider.name)) {
        this.tally.disturbed(`origin ${kind}`);
        return;
      }
  }

  /** In turn: an origin dies and another process has its address at once; one is told to stop; the edge dies; an origin stays away. */
  async #die(): Promise<void> {
    const place = this.#busiest();
    const hit = this.#ridingAt(place);
    switch (this.#deaths++ % 5) {
      case 0:
      case 2:
        this.tally.disturbed("origin killed", hit);
        return place.kill(0);
      case 1:
        this.tally.disturbed("origin drained", hit);
        return place.roll();
      case 3:
        this.tally.disturbed("edge killed", this.riders.filter(({ isMidAnswer }) => isMidAnswer).length);
        return this.stack.killEdge();
      default:
        this.tally.disturbed("origin killed, away", hit);
        return place.kill(downMs);
    }
  }

  /** Answers between their first token and their last that this origin has. */
  #ridingAt({ epoch }: OriginPlace): number {
    return this.riders.filter(({ isMidAnswer, answer }) => isMidAnswer && answer?.epoch === epoch).length;
  }

  /** The origin whose end hits the most. */
  #busiest(): OriginPlace {
    return this.stack.places.reduce((most, each) => (this.#ridingAt(each) > this.#ridingAt(most) ? each : most));
  }
}
