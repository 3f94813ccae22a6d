/** A session without a socket: what the client sends is received at once, and what the session sends arrives at once. */
import type { SessionSocket } from "../../origin/outbox.js";
import { Session } from "../../origin/session.js";
import type { AssertionClaims } from "../../shared/assertion.js";
import { claims, epoch, type simulatedResponses, TestClient } from "./support.js";

/** A session and its client, joined without a socket. Bytes are spoilt after the callback, as uWebSockets.js does. */
export class FakeClient extends TestClient {
  session!: Session;
  /** What `send` answers. */
  takes = true;
  isFull = false;
  readonly socket: SessionSocket = {
    send: (bytes) => {
      if (this.takes) this.arrive(bytes);
      return this.takes;
    },
    isFull: () => this.isFull,
    close: (code, reason, last) => {
      if (last) this.arrive(last);
      this.finish({ code, reason });
      this.session.closed();
    },
  };

  override sendRaw(bytes: Uint8Array | string): void {
    const copy = typeof bytes === "string" ? new TextEncoder().encode(bytes) : Uint8Array.from(bytes);
    this.session.receive(copy, typeof bytes !== "string");
    copy.fill(0xc1);
  }

  override disconnect(): void {
    this.session.closed();
  }
}

const info = { epoch, engine: "simulated", model: "simulated", contextTokens: 2_048 } as const;

export function openFake(
  parts: ReturnType<typeof simulatedResponses>,
  streamLimits = {},
  now?: () => number,
  changes: Partial<AssertionClaims> = {},
): FakeClient {
  const client = new FakeClient();
  const limits = { ...claims().limits, ...streamLimits };
  client.session = new Session(client.socket, claims({ limits, ...changes }), parts.responses, info, now);
  client.session.open();
  return client;
}
