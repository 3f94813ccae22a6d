import { expect, test } from "vitest";
import { bounds } from "../../origin/bounds.js";
import { type Tombstone, Tombstones } from "../../origin/tombstones.js";

const owner = { tenant: "t", user: "u" };
const of = (id: string, key?: string): Tombstone => ({ id, owner, seq: 3, reason: "stop", key, body: "", attempt: 1 });

test("how an answer ended is found by its name and by its key, for a while", () => {
  let nowMs = 0;
  const tombstones = new Tombstones(() => nowMs);
  tombstones.add(of("a", "k"));
  nowMs = bounds.tombstonesKeptMs;
  tombstones.add(of("b"));
  tombstones.tick();
  expect([tombstones.byId("a")?.seq, tombstones.byKey("k")?.id, tombstones.byId("b")?.reason]).toEqual([3, "a", "stop"]);
  nowMs++;
  tombstones.tick();
  expect([tombstones.byId("a"), tombstones.byKey("k")]).toEqual([undefined, undefined]);
  expect(tombstones.byId("b")).toBeDefined();
});

test("they are bounded in number, and the oldest go", () => {
  const tombstones = new Tombstones(() => 0);
  for (let index = 0; index <= bounds.tombstonesMax; index++) tombstones.add(of(`${index}`, index === 0 ? "k" : undefined));
  expect([tombstones.byId("0"), tombstones.byKey("k")]).toEqual([undefined, undefined]);
  expect(tombstones.byId("1")).toBeDefined();
  expect(tombstones.byId(`${bounds.tombstonesMax}`)).toBeDefined();
});
