/**
 * `npm run test:crowd`: five hundred sequences at once on the default model, 200 tokens each, and two hundred more that are cancelled
 * wherever they stand. Every answer is compared: fifty with one computed truly alone, the others with a second run in another order and
 * fewer slots. Then memory must be back where it was. `--quick` is a tenth of it; `engine/test/crowd.test.cpp` is the same on a tiny model.
 */
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { Engine } from "../engine/binding/index.js";
import { type CrowdShape, type Member, makeCrowd, promptTokens } from "./crowd/members.js";
import { type Answer, type CrowdRun, difference, runCrowd } from "./crowd/run.js";
import { tokensOfText } from "./eval/windows.js";
import { Random } from "./random.js";
import { runAsCommand } from "./setup/command.js";
import { SetupError } from "./setup/exec.js";
import { resolveModel } from "./setup/model.js";
import { silent } from "./setup/progress.js";

const usage = "npm run test:crowd -- [--model PATH] [--threads N] [--seed N] [--quick]";
const textFile = new URL("../test/engine/fixtures/persuasion.txt", import.meta.url);
const shapes: Record<"full" | "quick", CrowdShape & { solo: number }> = {
  full: { answered: 500, cancelled: 200, tokens: 200, solo: 50 },
  quick: { answered: 50, cancelled: 20, tokens: 40, solo: 5 },
};
/** Slots for all who are answered, and a tenth that classes leave to one another. */
const slotsOf = ({ answered }: CrowdShape): number => Math.ceil(1.1 * answered);
/** The second run's, so that its batches are others. */
const slotsOfSecond = 48;
/** Waiting requests of a class are bounded, by 256: what may be under way at once of the second run. */
const secondAtOnce = 600;
/** What may stay resident of a model that was closed: the allocator's, and the answers kept here. */
const residentBytesMax = 512 << 20;

interface Options {
  model: string;
  threads: number | undefined;
  seed: number;
  quick: boolean;
  say: (line: string) => void;
}

/** @returns what was wrong, a sentence each. */
async function main({ model, threads, seed, quick, say }: Options): Promise<string[]> {
  const shape = shapes[quick ? "quick" : "full"];
  const contextTokens = promptTokens.shared + promptTokens.max + shape.tokens;
  const options = { path: model, contextTokens, ...(threads === undefined ? {} : { threads }) };
  const random = new Random(seed);
  const solo = await Engine.load({ ...options, slots: 1 });
  const crowd = makeCrowd(shape, await tokensOfText(solo.vocabulary(), readFileSync(textFile, "utf8")), random);
  const found: string[] = [];
  const before = residentBytes();

  say(`${crowd.length} requests at once, ${shape.cancelled} of which are cancelled; seed ${seed}`);
  const first = await withEngine({ ...options, slots: slotsOf(shape) }, crowd, crowd.length, found, say);
  describe(first, say);
  const answered = random.shuffled(crowd).filter((member) => (first.answers.get(member) as Answer).ids.length > 0);
  say(`the same once more, the ${answered.length} that had tokens, in another order with ${slotsOfSecond} slots`);
  const calm = answered.map((member): Member => ({ ...member, cancellation: undefined }));
  const second = await withEngine({ ...options, slots: slotsOfSecond }, calm, secondAtOnce, found, say);
  const resident = residentBytes() - before;
  say(`resident memory is ${mebibytes(resident)} more than before both, with both engines closed`);
  if (resident > residentBytesMax) found.push(`${mebibytes(resident)} stayed resident, over ${mebibytes(residentBytesMax)}`);

  for (const [index, member] of answered.entries()) {
    const told = first.answers.get(member) as Answer;
    const wrong = difference(told, second.answers.get(calm[index] as Member) as Answer);
    if (wrong !== undefined) found.push(`request ${crowd.indexOf(member)}, beside its second run: ${wrong}`);
  }
  const whole = answered.filter(({ cancellation }) => cancellation === undefined).slice(0, shape.solo);
  const alone = await runCrowd(solo, whole, 1, () => {});
  await solo.close();
  for (const member of whole) {
    const wrong = difference(first.answers.get(member) as Answer, alone.answers.get(member) as Answer);
    if (wrong !== undefined) found.push(`request ${crowd.indexOf(member)}, beside its solo run: ${wrong}`);
  }
  say(`compared ${answered.length} answers with their second run, and ${whole.length} with their solo run (${alone.seconds.toFixed(0)} s)`);
  return found;
}

/** Loads, runs, looks that nothing is left, closes. */
async function withEngine(
  options: Parameters<typeof Engine.load>[0],
  crowd: Member[],
  atOnce: number,
  found: string[],
  say: (line: string) => void,
): Promise<CrowdRun> {
  const engine = await Engine.load(options);
  try {
    const run = await runCrowd(engine, crowd, atOnce, say);
    const { running, waiting, kvBytesPromised, kvBytesMapped, kvBytesMax, steps, tokens } = engine.stats();
    say(
      `${tokens} tokens in ${steps} steps and ${run.seconds.toFixed(0)} s; at most ${run.runningMost} ran at once; ` +
        `KV memory ${mebibytes(kvBytesMapped)} mapped of ${mebibytes(kvBytesMax)}, ${kvBytesPromised} bytes promised`,
    );
    if (running + waiting > 0 || kvBytesPromised > 0)
      found.push(`when all had ended, ${running} ran, ${waiting} waited, and ${kvBytesPromised} bytes of KV memory were promised`);
    if (kvBytesMapped > kvBytesMax) found.push(`${kvBytesMapped} bytes of KV memory are mapped, over ${kvBytesMax}`);
    return run;
  } finally {
    await engine.close();
  }
}

function describe(run: CrowdRun, say: (line: string) => void): void {
  const answers = [...run.answers.values()];
  const count = (is: (answer: Answer) => boolean): number => answers.filter(is).length;
  const cancelled = (is: (answer: Answer) => boolean): number => count((answer) => answer.reason === "cancelled" && is(answer));
  say(
    `${count(({ reason }) => reason === "length")} ran to their full length and ${count(({ reason }) => reason === "stop")} to their own end; ` +
      `cancelled in the queue ${cancelled(({ started }) => !started)}, in the prompt ${cancelled(({ started, seq }) => started && seq === 0)}, ` +
      `in the answer ${cancelled(({ seq }) => seq > 0)}`,
  );
}

const residentBytes = (): number => {
  global.gc?.();
  return process.memoryUsage.rss();
};
const mebibytes = (bytes: number): string => `${Math.round(bytes / 1_048_576)} MiB`;

function readArguments() {
  const string = { type: "string" } as const;
  const { values } = parseArgs({ options: { model: string, threads: string, seed: string, quick: { type: "boolean", default: false } } });
  const integer = (name: "threads" | "seed", min: number): number | undefined => {
    const value = values[name] === undefined ? undefined : Number(values[name]);
    if (value !== undefined && (!Number.isSafeInteger(value) || value < min))
      throw new SetupError(`--${name} is ${values[name]}, not an integer from ${min}\n${usage}`);
    return value;
  };
  return { ...values, threads: integer("threads", 1), seed: integer("seed", 0) ?? Math.floor(Math.random() * 2 ** 32) };
}

await runAsCommand(import.meta.url, async () => {
  const { model, ...rest } = readArguments();
  const found = await main({ model: await resolveModel(model, silent()), ...rest, say: console.log });
  for (const sentence of found) console.error(sentence);
  console.log(found.length === 0 ? "every answer is what it is alone, and nothing is left" : `${found.length} differences`);
  if (found.length > 0) process.exitCode = 1;
});
