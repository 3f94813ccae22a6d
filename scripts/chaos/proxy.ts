/** A loopback TCP proxy whose connections can be disturbed one by one: delayed, cut, half-closed, stalled, reset. */
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

export const disturbances = ["delay", "cut", "halfClose", "stall", "reset"] as const;
export type Disturbance = (typeof disturbances)[number];

/** How long a delay holds both directions back, and a stall one of them. */
const holdMs = { delay: 60, stall: 250 } as const;

interface Relayed {
  /** Towards whoever connected. */
  near: Socket;
  /** Towards the target. */
  far: Socket;
  /** Whom the first bytes name. */
  whose: string | undefined;
}

export class ChaosProxy {
  readonly #relayed = new Set<Relayed>();
  #isClosed = false;

  private constructor(
    private readonly server: Server,
    private readonly target: () => number,
    private readonly identify: (head: string) => string | undefined,
  ) {
    server.on("connection", (near) => this.#relay(near));
  }

  /**
   * @param target the port on loopback that connections go to, asked for each.
   * @param identify whose a connection is, from what comes first over it.
   */
  static async listen(target: () => number, identify: (head: string) => string | undefined = () => undefined): Promise<ChaosProxy> {
    const server = createServer({ allowHalfOpen: true }).listen(0, "127.0.0.1");
    await once(server, "listening");
    return new ChaosProxy(server, target, identify);
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  /** Disturbs the newest connection, or that of `whose`. @returns whether there was one. */
  disturb(kind: Disturbance, whose?: string): boolean {
    const relayed = [...this.#relayed].findLast((each) => whose === undefined || each.whose === whose);
    if (!relayed) return false;
    const { near, far } = relayed;
    switch (kind) {
      case "delay":
        hold(near, holdMs.delay);
        hold(far, holdMs.delay);
        break;
      case "stall":
        hold(far, holdMs.stall);
        break;
      case "cut":
        near.destroy();
        far.destroy();
        break;
      case "reset":
        near.resetAndDestroy();
        far.resetAndDestroy();
        break;
      case "halfClose":
        near.end();
    }
    return true;
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    for (const { near, far } of this.#relayed) {
      near.destroy();
      far.destroy();
    }
    this.server.close();
    await once(this.server, "close");
  }

  #relay(near: Socket): void {
    const far = connect({ port: this.target(), host: "127.0.0.1", allowHalfOpen: true });
    const relayed: Relayed = { near, far, whose: undefined };
    this.#relayed.add(relayed);
    near.once("data", (bytes: Buffer) => {
      relayed.whose = this.identify(bytes.toString("latin1"));
    });
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      from.setNoDelay(true);
      from.pipe(to);
      from.on("error", () => {});
      from.on("close", () => {
        this.#relayed.delete(relayed);
        to.destroy();
      });
    }
    if (this.#isClosed) near.destroy();
  }
}

/** Nothing is read from the socket for so long; what comes meanwhile waits in the kernel. */
function hold(socket: Socket, ms: number): void {
  socket.pause();
  setTimeout(() => socket.resume(), ms);
}
