/** To which origin a socket is led, and what its assertion says of that: through the whole Worker, over a network of fake origins. */
import { decodeJwt } from "jose";
import { describe, expect, test, vi } from "vitest";
import { signingKeys } from "../../edge/keys.js";
import { makeResumeToken } from "../../edge/resume.js";
import type { AssertionClaims } from "../../shared/assertion.js";
import {
  begun,
  bindings,
  expectRefusal,
  type FakeFleet,
  type FakeOrigin,
  fakeFleet,
  isolateTests,
  offer,
  offerResume,
  openStream,
  stillClock,
  ticketFor,
} from "./support.js";

isolateTests();

/** What the origin was told in each upgrade, as far as it decides where the session goes on. */
function told({ assertions }: FakeOrigin): Pick<AssertionClaims, "epoch" | "dead" | "returning">[] {
  return assertions.map(({ epoch, dead, returning }) => JSON.parse(JSON.stringify({ epoch, dead, returning })));
}

/** The run that the session comes back to with the last token that this origin was given. */
function homeIn({ assertions }: FakeOrigin): unknown {
  const { origin, epoch } = decodeJwt(assertions.at(-1)?.resume ?? "");
  return { origin, epoch };
}

describe("a new session", () => {
  const open = async (fleet: FakeFleet<string>) => openStream(offer(await ticketFor()), fleet.bindings);

  test("goes to the first origin of the list, and asks no other", async () => {
    const fleet = fakeFleet("a", "b");
    expect((await open(fleet)).status).toBe(101);
    expect(told(fleet.origins.a)).toEqual([{ epoch: "a-1" }]);
    expect(homeIn(fleet.origins.a)).toEqual({ origin: "a", epoch: "a-1" });
    expect([fleet.origins.b.probes, fleet.origins.b.assertions.length]).toEqual([0, 0]);
  });

  test.each(["loading", "draining", "unreachable"] as const)("passes over an origin that is %s, unasked", async (state) => {
    const fleet = fakeFleet("a", "b");
    fleet.origins.a.state = state;
    expect((await open(fleet)).status).toBe(101);
    expect(fleet.origins.a.knocks).toBe(0);
    expect(told(fleet.origins.b)).toEqual([{ epoch: "b-1" }]);
  });

  test("tries the next where a ready one cannot take it now, with an assertion for that one", async () => {
    const fleet = fakeFleet("a", "b");
    fleet.origins.a.refuses = "overloaded";
    expect((await open(fleet)).status).toBe(101);
    expect(fleet.origins.a.assertions.map(({ aud }) => aud)).toEqual(["a"]);
    expect(fleet.origins.b.assertions.map(({ aud }) => aud)).toEqual(["b"]);
    expect(homeIn(fleet.origins.b)).toEqual({ origin: "b", epoch: "b-1" });
  });

  test("does not try the next where that would refuse the same", async () => {
    const fleet = fakeFleet("a", "b");
    fleet.origins.a.refuses = "assertion_invalid";
    await expectRefusal(await open(fleet), "assertion_invalid", "this origin says");
    expect(fleet.origins.b.probes).toBe(0);
  });

  test("tries them all where none is ready, and tells the refusal of one that could be reached", async () => {
    const fleet = fakeFleet("a", "b", "c");
    fleet.origins.a.state = "draining";
    fleet.origins.b.state = "loading";
    fleet.origins.c.state = "unreachable";
    await expectRefusal(await open(fleet), "model_loading", "this origin says");
    expect(told(fleet.origins.a)).toEqual([{ epoch: "a-1" }]);
    expect(told(fleet.origins.b)).toEqual([{ epoch: "b-1" }]);
  });

  test("opens on the new run of an origin that was restarted since it was probed", async () => {
    const fleet = fakeFleet("a", "b");
    await open(fleet);
    fleet.origins.a.epoch = "a-2";
    expect((await open(fleet)).status).toBe(101);
    expect(told(fleet.origins.a)).toEqual([{ epoch: "a-1" }, { epoch: "a-1" }, { epoch: "a-2" }]);
    expect(homeIn(fleet.origins.a)).toEqual({ origin: "a", epoch: "a-2" });
    expect([fleet.origins.a.probes, fleet.origins.b.probes]).toEqual([2, 0]);
  });

  test("never hears epoch_changed, not even of an origin that is restarted at each look", async () => {
    const fleet = fakeFleet("a");
    let runs = 0;
    Object.defineProperty(fleet.origins.a, "epoch", { get: () => `a-${++runs}` });
    await expectRefusal(await open(fleet), "origin_unreachable", "origin a is another run than it just said");
    expect(fleet.origins.a.assertions.length).toBe(2);
  });

  test("goes on to the next where an origin died since it was probed, and the one after it goes there at once", async () => {
    const fleet = fakeFleet("a", "b");
    await open(fleet);
    fleet.origins.a.state = "unreachable";
    expect((await open(fleet)).status).toBe(101);
    expect([fleet.origins.a.probes, fleet.origins.a.knocks]).toEqual([1, 2]);
    expect((await open(fleet)).status).toBe(101);
    expect([fleet.origins.a.probes, fleet.origins.a.knocks]).toEqual([2, 2]);
    expect(told(fleet.origins.b)).toEqual([{ epoch: "b-1" }, { epoch: "b-1" }]);
  });

  test("that asks for elsewhere has been nowhere yet, and goes where any goes", async () => {
    const fleet = fakeFleet("a", "b");
    const headers = { "sec-websocket-protocol": `millrace.v1, ticket.${await ticketFor()}, elsewhere` };
    expect((await openStream(headers, fleet.bindings)).status).toBe(101);
    expect(told(fleet.origins.a)).toEqual([{ epoch: "a-1" }]);
  });
});

describe("a session that comes back", () => {
  /** It began at `b`, the second of the list, and its token is offered again. */
  async function left() {
    const fleet = fakeFleet("a", "b");
    const { a, b } = fleet.origins;
    a.refuses = "overloaded";
    const token = await begun(fleet, "b");
    delete a.refuses;
    for (const origin of [a, b]) origin.assertions.length = 0;
    const back = (...more: string[]): Promise<Response> => openStream(offerResume(token, ...more), fleet.bindings);
    return { fleet, a, b, back };
  }

  test.each(["ready", "draining"] as const)("goes to the run that it left, which is %s, and to no other", async (state) => {
    const { a, b, back } = await left();
    b.state = state;
    expect((await back()).status).toBe(101);
    expect(told(b)).toEqual([{ epoch: "b-1", returning: true }]);
    expect(homeIn(b)).toEqual({ origin: "b", epoch: "b-1" });
    expect(told(a)).toEqual([]);
  });

  test("hears the refusal of that run: nobody else has its answers", async () => {
    const { a, b, back } = await left();
    b.refuses = "overloaded";
    await expectRefusal(await back(), "overloaded", "this origin says");
    expect(told(a)).toEqual([]);
  });

  test("is told that the run is dead by the one that took its place", async () => {
    const { a, b, back } = await left();
    b.epoch = "b-2";
    expect((await back()).status).toBe(101);
    expect(told(b)).toEqual([
      { epoch: "b-1", returning: true },
      { epoch: "b-2", dead: "b-1" },
    ]);
    expect(homeIn(b)).toEqual({ origin: "b", epoch: "b-2" });
    expect(told(a)).toEqual([]);
  });

  test("is told so by another origin where the new run does not take it yet", async () => {
    const { a, b, back } = await left();
    Object.assign(b, { epoch: "b-2", state: "loading" });
    expect((await back()).status).toBe(101);
    expect(told(a)).toEqual([{ epoch: "a-1", dead: "b-1" }]);
    expect(homeIn(a)).toEqual({ origin: "a", epoch: "a-1" });
  });

  test("is told so where its origin is not configured any more, whether it asks for elsewhere or not", async () => {
    const { fleet, a, b, back } = await left();
    fleet.bindings.ORIGINS = JSON.stringify((JSON.parse(fleet.bindings.ORIGINS ?? "") as object[]).slice(0, 1));
    for (const more of [[], ["elsewhere"]]) expect((await back(...more)).status).toBe(101);
    expect(told(a)).toEqual([
      { epoch: "a-1", dead: "b-1" },
      { epoch: "a-1", dead: "b-1" },
    ]);
    expect(told(b)).toEqual([]);
  });

  // What this isolate remembers of an origin may be older than the run on which another isolate began a session.
  test("is not taken for one of a dead run because of what was remembered from before that run", async () => {
    const { fleet, b } = await left();
    b.epoch = "b-2";
    const principal = { user: "ada", tenant: "analytical", class: "chat", limits: { streamsMax: 1, tokensMax: 1 } } as const;
    const session = { principal, page: null, expiresAt: Math.floor(Date.now() / 1_000) + 60 };
    const token = await makeResumeToken(session, { origin: "b", epoch: "b-2" }, await signingKeys(bindings));
    expect((await openStream(offerResume(token ?? ""), fleet.bindings)).status).toBe(101);
    expect(told(b)).toEqual([{ epoch: "b-2", returning: true }]);
  });

  test("is asked to wait while the origin cannot be reached, and to nobody is it called dead", async () => {
    const clock = stillClock();
    const { a, b, back } = await left();
    b.state = "unreachable";
    // First the probe is still remembered and the connection fails, then the probe fails, then its failure is remembered.
    for (let attempt = 1; attempt <= 3; attempt++)
      expect(await expectRefusal(await back(), "origin_unreachable", "origin b, which this session comes back to")).toBe(4_000);
    expect(told(a)).toEqual([]);
    b.state = "ready";
    clock.advance(500);
    expect((await back()).status).toBe(101);
    expect(told(b)).toEqual([{ epoch: "b-1", returning: true }]);
  });

  test("is asked to wait where the origin is another run than its own probe says, rather than given up", async () => {
    const { a, b, back } = await left();
    b.refuses = "epoch_changed";
    expect(await expectRefusal(await back(), "origin_unreachable", "origin b, which")).toBe(4_000);
    expect(told(a)).toEqual([]);
  });

  test("goes elsewhere when it asks to, as a new one that left nothing there", async () => {
    const { a, b, back } = await left();
    for (const state of ["ready", "draining", "unreachable"] as const) {
      b.state = state;
      expect((await back("elsewhere")).status).toBe(101);
    }
    expect(told(a)).toEqual([{ epoch: "a-1" }, { epoch: "a-1" }, { epoch: "a-1" }]);
    expect(homeIn(a)).toEqual({ origin: "a", epoch: "a-1" });
    expect(told(b)).toEqual([]);
  });

  test.each(["loading", "draining", "unreachable"] as const)("comes home from elsewhere where the only other is %s", async (state) => {
    const { a, b, back } = await left();
    a.state = state;
    expect((await back("elsewhere")).status).toBe(101);
    expect(told(b)).toEqual([{ epoch: "b-1", returning: true }]);
  });

  test("stays where it is if there is no elsewhere, and waits if nobody is left", async () => {
    const fleet = fakeFleet("a");
    const token = await begun(fleet, "a");
    expect((await openStream(offerResume(token, "elsewhere"), fleet.bindings)).status).toBe(101);
    expect(told(fleet.origins.a)).toEqual([{ epoch: "a-1" }, { epoch: "a-1", returning: true }]);
    fleet.origins.a.state = "unreachable";
    expect(await expectRefusal(await openStream(offerResume(token, "elsewhere"), fleet.bindings), "origin_unreachable", "origin a")).toBe(
      4_000,
    );
  });
});

// HELLO passes these on. Each part is the waiting for that part alone, and none is ever negative, however the clock may be set.
test("the assertion says where the upgrade's time went until then", async () => {
  const clock = stillClock();
  const fleet = fakeFleet("a", "b");
  const network = globalThis.fetch;
  fleet.origins.a.refuses = "overloaded";
  vi.stubGlobal("fetch", async (url: string, init: RequestInit) => {
    clock.advance(url.endsWith("/readyz") ? 30 : 200);
    return network(url, init);
  });
  await openStream(offer(await ticketFor()), fleet.bindings);
  expect(fleet.origins.a.assertions[0]?.upgrade).toEqual({ redeemMs: 0, chooseMs: 30, connectMs: 0 });
  expect(fleet.origins.b.assertions[0]?.upgrade).toEqual({ redeemMs: 0, chooseMs: 60, connectMs: 200 });
  vi.stubGlobal("fetch", async (url: string, init: RequestInit) => {
    clock.advance(-3_600_000);
    return network(url, init);
  });
  await openStream(offer(await ticketFor()), fleet.bindings);
  expect(fleet.origins.b.assertions[1]?.upgrade).toEqual({ redeemMs: 0, chooseMs: 0, connectMs: 0 });
});
