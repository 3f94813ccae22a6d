import fc from "fast-check";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { Connection } from "../../client/connection.js";
import { clientLimits } from "../../client/limits.js";
import { backoffMs, Link, type LinkState } from "../../client/link.js";
import { MillraceError } from "../../shared/errors.js";

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

/** A connection that ends when told. */
function fakeConnection() {
  let end: (reason: MillraceError) => void = () => {};
  const connection = {
    ended: undefined as MillraceError | undefined,
    hello: { model: "m" },
    closed: new Promise<MillraceError>((resolve) => {
      end = (reason) => {
        connection.ended = reason;
        resolve(reason);
      };
    }),
    close() {},
  };
  return { connection: connection as unknown as Connection, end: (reason: MillraceError) => end(reason) };
}

test("it tries again with a pause after each failure, and again when a connection is lost", async () => {
  const refused = new MillraceError("origin_unreachable", "no origin");
  const [first, second] = [fakeConnection(), fakeConnection()];
  const outcomes = [refused, refused, first.connection, second.connection];
  const states: LinkState[] = [];
  const link = new Link(
    async () => {
      const outcome = outcomes.shift() as Connection | MillraceError;
      if (outcome instanceof MillraceError) throw outcome;
      return outcome;
    },
    (state) => states.push(state),
  );
  link.open();
  await vi.runAllTimersAsync();
  expect(states.map(({ kind }) => kind)).toEqual(["connecting", "waiting", "connecting", "waiting", "connecting", "open"]);
  first.end(new MillraceError("connection_lost", "gone"));
  await vi.runAllTimersAsync();
  expect(states.slice(6).map(({ kind }) => kind)).toEqual(["waiting", "connecting", "open"]);
  expect(await link.connection()).toBe(second.connection);
  link.close();
});

test("a server that says when to come back is obeyed", async () => {
  const states: LinkState[] = [];
  const link = new Link(
    () => Promise.reject(new MillraceError("model_loading", "loading", 60_000)),
    (state) => states.push(state),
  );
  await expect(link.connection()).rejects.toMatchObject({ code: "model_loading" });
  expect(states.at(-1)).toMatchObject({ kind: "waiting", retryInMs: 60_000 });
  link.close();
  expect(vi.getTimerCount()).toBe(0);
});

test("what would fail again is not tried again", async () => {
  const states: LinkState[] = [];
  const link = new Link(
    () => Promise.reject(new MillraceError("credential_missing", "no JWT")),
    (state) => states.push(state),
  );
  await expect(link.connection()).rejects.toMatchObject({ code: "credential_missing" });
  expect(states.at(-1)?.kind).toBe("stopped");
  expect(vi.getTimerCount()).toBe(0);
});

test("one attempt serves all who wait for it", async () => {
  const { connection } = fakeConnection();
  const dial = vi.fn(() => Promise.resolve(connection));
  const link = new Link(dial, () => {});
  const both = await Promise.all([link.connection(), link.connection()]);
  expect([...both, await link.connection()]).toEqual([connection, connection, connection]);
  expect(dial).toHaveBeenCalledTimes(1);
});

test("the pause grows, is bounded, and is never all chance", () => {
  fc.assert(
    fc.property(fc.nat(2_000), fc.double({ min: 0, max: 1, noNaN: true }), (failures, random) => {
      const most = backoffMs(failures, 1);
      expect(backoffMs(failures, random)).toBeGreaterThanOrEqual(most / 2 - 1);
      expect(backoffMs(failures + 1, random)).toBeGreaterThanOrEqual(backoffMs(failures, random));
      expect(most).toBeLessThanOrEqual(clientLimits.backoffMsMax);
    }),
  );
});
