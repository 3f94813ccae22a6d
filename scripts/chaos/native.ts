/** Answers of the native engine, greedy and seeded, with two kills of an origin: joined, each is what it is undisturbed, token for token. */
import { setTimeout as passed } from "node:timers/promises";
import type { ChatMessage, StartOptions } from "../../shared/protocol.js";
import { Random } from "../random.js";
import { resolveModel } from "../setup/model.js";
import { silent } from "../setup/progress.js";
import type { Question } from "./questions.js";
import { Rider } from "./rider.js";
import { ChaosStack } from "./stack.js";
import { Tally } from "./tally.js";

export interface NativeOptions {
  seed: number;
  say: (line: string) => void;
}

const answers = 20;
const riderCount = 4;
const maxTokens = 80;
const kills = 2;
const lookEveryMs = 50;
const customerSecret = "another secret that is known to everybody";
const topics = ["a mill", "a river", "bread", "the moon", "rope", "a bell", "salt", "wind", "stone", "ink"];

/** @returns what was wrong, a sentence each. */
export async function runNative({ seed, say }: NativeOptions): Promise<string[]> {
  const random = new Random(seed);
  const tally = new Tally();
  const model = await resolveModel(undefined, silent());
  const originArgs = ["--model", model, "--threads", "2", "--ctx", "1024", "--slots", "8"];
  const stack = await ChaosStack.start({ originArgs, drainMs: 300, customerSecret });
  try {
    const board = (name: string): Promise<Rider> => Rider.board(name, () => stack.edgePort, customerSecret, random, tally);
    const calm = await board("calm");
    const questions: Question[] = [];
    for (let number = 0; number < answers; number++) questions.push(await undisturbed(calm, number));
    await calm.leave();
    say(`native: ${answers} answers of up to ${maxTokens} tokens are known; now with ${kills} kills`);
    const riders = await Promise.all(Array.from({ length: riderCount }, (_, index) => board(`native-${index}`)));
    let killed = 0;
    let next = 0;
    const ride = async (rider: Rider): Promise<void> => {
      for (let question = questions[next++]; question; question = questions[next++]) await rider.ask(question);
    };
    /** Kills are spread over the questions, not over time: machines differ. Each waits for an answer that runs at the origin that is killed. */
    const kill = async (): Promise<void> => {
      while (killed < kills && next < questions.length) {
        await passed(lookEveryMs);
        if (next < ((killed + 1) * questions.length) / (kills + 1)) continue;
        const riding = riders.filter(({ isMidAnswer }) => isMidAnswer).length;
        if (riding === 0) continue;
        // Newcomers go to the first, so it has the answers.
        await stack.places[killed % stack.places.length]?.kill(0);
        killed++;
        tally.disturbed("origin killed", riding);
      }
    };
    await Promise.all([...riders.map(ride), kill()]);
    await Promise.all(riders.map((rider) => rider.leave()));
    say(`native: ${tally.describe()}`);
    if (killed < kills) tally.wrong(`an origin was killed ${killed} times, not ${kills}`);
    if (tally.of("restart") === 0) tally.wrong("no native answer was restarted");
    return [...tally.wrongs];
  } finally {
    await stack.stop();
  }
}

/** Half are greedy and half drawn; what they have to be is what they are when nothing happens. */
async function undisturbed(rider: Rider, number: number): Promise<Question> {
  const messages: ChatMessage[] = [["user", `Tell me about ${topics[number % topics.length]}, in ${10 + number} words or more.`]];
  const sampling = number % 2 === 0 ? { temperature: 0 } : { temperature: 0.8, topP: 0.95, repetitionPenalty: 1.1, frequencyPenalty: 0.2 };
  const options: StartOptions = { maxTokens, seed: 1_000 + number, class: "chat", ...sampling };
  return { name: `native answer ${number}`, messages, options, expected: await rider.read({ messages, options }) };
}
