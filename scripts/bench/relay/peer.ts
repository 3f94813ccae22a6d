/** What the peers of cpu.ts have in common with the origin: a wheel that calls each stream once a step, and a text that says when it was due. */
import { once } from "node:events";
import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import { Stamps } from "../../../origin/simulatedStamps.js";
import { Wheel } from "../../../origin/wheel.js";

/** Sends one token to one client. `seq` counts from 1. */
export type SendToken = (text: string, seq: number) => void;

/** @param tokensPerSecond of each stream. @returns what begins a stream; what it returns ends it. */
export function streams(tokensPerSecond: number): (send: SendToken) => () => void {
  const stamps = new Stamps();
  const serve = (stream: { send: SendToken; seq: number }, dueMs: number): void => stream.send(stamps.at(dueMs).text, ++stream.seq);
  const wheel = new Wheel(1_000 / tokensPerSecond, true, serve, () => false);
  return (send) => {
    const stream = { send, seq: 0 };
    wheel.add(stream);
    wheel.wake();
    return () => wheel.delete(stream);
  };
}

/** Listens on a port that the system chooses, and says which. */
export async function announce(server: Server): Promise<void> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  console.log(`ready on ${(server.address() as AddressInfo).port}`);
}
