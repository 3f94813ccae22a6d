/** An origin dies and stays away: everybody is back, elsewhere, soon, and without asking for a ticket again. */
import { SignJWT } from "jose";
import { afterAll, beforeAll, expect, test } from "vitest";
import { WebSocket } from "ws";
import { Link, type SocketConstructor } from "../../client/index.js";
import { ChaosStack } from "../../scripts/chaos/stack.js";

const sockets = 500;
const backMsMax = 10_000;
const attemptsMax = 2;
const secret = "a secret of at least thirty-two bytes";
let stack: ChaosStack;
const links: Link[] = [];

beforeAll(async () => {
  const originArgs = ["--inference", "simulated", "--simulated-rate", "20", "--slots", "600"];
  stack = await ChaosStack.start({ originArgs, drainMs: 300, customerSecret: secret });
}, 60_000);
afterAll(async () => {
  for (const link of links) link.close();
  await stack?.stop();
});

/** Opens one link and says how often it dialled. */
function dial(token: string, onOpen: (epoch: string) => void): { attempts: () => number } {
  let attempts = 0;
  class Counted extends WebSocket {
    constructor(url: string, protocols: string[]) {
      super(url, protocols);
      attempts++;
    }
  }
  const link = new Link({
    edge: `http://127.0.0.1:${stack.edgePort}`,
    token,
    WebSocket: Counted as unknown as SocketConstructor,
    onState: (state) => state.kind === "open" && onOpen(state.hello.epoch),
  });
  links.push(link);
  link.open();
  return { attempts: () => attempts };
}

test(`${sockets} sockets are back within ${backMsMax / 1_000} s, with ${attemptsMax} attempts each at most`, async () => {
  const token = await new SignJWT({ tenant: "test" })
    .setProtectedHeader({ alg: "HS256" })
    .setSubject("everybody")
    .setExpirationTime("1h")
    .sign(new TextEncoder().encode(secret));
  const epochs = new Map<number, string>();
  const counts: { attempts: () => number }[] = [];
  // A few at a time: an origin that is slow to answer a crowd would send some of it to the other.
  while (counts.length < sockets) {
    for (let more = 0; more < 25; more++) {
      const index = counts.length;
      counts.push(dial(token, (epoch) => epochs.set(index, epoch)));
    }
    await expect.poll(() => epochs.size, { timeout: 20_000, interval: 5 }).toBe(counts.length);
  }
  const [lost] = new Set(epochs.values());
  expect(new Set(epochs.values()).size).toBe(1);
  const before = counts.map(({ attempts }) => attempts());
  epochs.clear();
  const begunMs = performance.now();
  void stack.places[0]?.kill(backMsMax);
  await expect.poll(() => epochs.size, { timeout: backMsMax + 5_000, interval: 20 }).toBe(sockets);
  expect(performance.now() - begunMs).toBeLessThan(backMsMax);
  expect([...new Set(epochs.values())]).not.toContain(lost);
  const attempts = counts.map((count, index) => count.attempts() - (before[index] as number));
  expect(Math.max(...attempts)).toBeLessThanOrEqual(attemptsMax);
  for (const link of links) link.close();
}, 90_000);
