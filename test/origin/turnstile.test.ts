/** Whose conversation is tokenized next, with tasks that end when the test says so. */
import { expect, test } from "vitest";
import { bounds } from "../../origin/bounds.js";
import { Turnstile } from "../../origin/chat/turnstile.js";

const long = bounds.tokenizeLongChars + 1;

function start(): {
  ask(user: string, chars?: number): Promise<void>;
  running: string[];
  finish(user: string): Promise<void>;
  began: string[];
} {
  const turnstile = new Turnstile();
  const running: string[] = [];
  const began: string[] = [];
  const ends = new Map<string, () => void>();
  const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
  return {
    running,
    began,
    async ask(user, chars = 10) {
      const task = async (): Promise<void> => {
        began.push(user);
        running.push(user);
        await new Promise<void>((resolve) => ends.set(user, resolve));
        running.splice(running.indexOf(user), 1);
      };
      const ran = turnstile.run(user, chars, task);
      await Promise.race([ran, settled()]);
    },
    async finish(user) {
      ends.get(user)?.();
      await settled();
    },
  };
}

test("each user has one in work, and all together as many as there may be", async () => {
  const { ask, running, finish } = start();
  for (const user of ["a", "a", "a", "b", "c", "d"]) await ask(user);
  expect(running).toEqual(["a", "b", "c"]);
  await finish("b");
  expect(running).toEqual(["a", "c", "d"]);
  await finish("c");
  expect(running).toEqual(["a", "d"]);
  await finish("a");
  expect(running).toEqual(["d", "a"]);
});

test("users take turns, however many conversations one of them has", async () => {
  const { ask, began, finish } = start();
  for (let count = 0; count < 5; count++) await ask("greedy", long);
  for (const user of ["x", "y", "z"]) await ask(user, long);
  await finish("greedy");
  await finish("x");
  await finish("y");
  expect(began).toEqual(["greedy", "x", "y", "z", "greedy"]);
});

test("long conversations leave a thread to the short ones", async () => {
  const { ask, running, finish } = start();
  for (const user of ["a", "b", "c"]) await ask(user, long);
  expect(running).toEqual(["a", "b"]);
  await ask("short");
  expect(running).toEqual(["a", "b", "short"]);
  await finish("a");
  expect(running).toEqual(["b", "short", "c"]);
});

test("a task that fails makes room too", async () => {
  const turnstile = new Turnstile();
  for (let count = 0; count < 2 * bounds.tokenizeAtOnceMax; count++)
    await expect(turnstile.run("a", 1, () => Promise.reject(new Error("bad")))).rejects.toThrow("bad");
  expect(await turnstile.run("a", 1, async () => 7)).toBe(7);
});

test("who asks for more than may wait is told so, and nobody else", async () => {
  const { ask, running } = start();
  for (let count = 0; count <= bounds.tokenizeWaitingOfUserMax; count++) await ask("a");
  await expect(ask("a")).rejects.toMatchObject({
    code: "overloaded",
    message: "64 conversations of this user wait to be tokenized already",
    retryAfterMs: bounds.retryAfterMs,
  });
  await ask("b");
  expect(running).toEqual(["a", "b"]);
  let refused = "";
  for (let user = 0; refused === "" && user <= bounds.tokenizeWaitingMax; user++)
    await ask(`user ${user}`).catch((error: Error) => {
      refused = error.message;
    });
  expect(refused).toBe("512 conversations of all users wait to be tokenized already");
});
