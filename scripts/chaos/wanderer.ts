/**
 * Comes to whichever origin the edge gives a newcomer, and asks there for answers that riders have: it is sent on, or reads along from the
 * beginning. So misrouting is seen in numbers, which the edge's own care for sessions would leave rare.
 */
import { SignJWT } from "jose";
import { WebSocket } from "ws";
import { connect } from "../../client/index.js";
import { Op, type ServerMessage } from "../../shared/protocol.js";
import type { Rider } from "./rider.js";
import type { Tally } from "./tally.js";

const everyMs = 150;

export class Wanderer {
  #timer: NodeJS.Timeout | undefined;
  #walking = Promise.resolve();

  constructor(
    private readonly edgePort: () => number,
    private readonly secret: string,
    private readonly riders: readonly Rider[],
    private readonly tally: Tally,
  ) {}

  begin(): void {
    this.#timer = setInterval(() => {
      this.#walking = this.#walking.then(() => this.#visit()).catch(() => {});
    }, everyMs);
  }

  async end(): Promise<void> {
    clearInterval(this.#timer);
    await this.#walking;
  }

  /** What becomes of it where the storm takes its own connection is nobody's concern. */
  async #visit(): Promise<void> {
    const rider = this.riders.find(({ isMidAnswer }) => isMidAnswer);
    // Where it is may change while somebody is on the way there.
    const { id, epoch: home } = rider?.answer ?? {};
    if (!rider || id === undefined || home === undefined) return;
    const token = await new SignJWT({ tenant: "chaos", class: "voice" })
      .setProtectedHeader({ alg: "HS256" })
      .setSubject(rider.name)
      .setExpirationTime("1h")
      .sign(new TextEncoder().encode(this.secret));
    const options = { edge: `http://127.0.0.1:${this.edgePort()}`, token, WebSocket: WebSocket as never };
    let told: (message: ServerMessage) => void = () => {};
    const connection = await connect({ ...options, onMessage: (message) => told(message) });
    const first = new Promise<ServerMessage>((resolve) => {
      told = resolve;
    });
    const { epoch } = connection.hello;
    connection.send([Op.RESUME, 1, home, id, 0, 1]);
    const reply = await Promise.race([first, connection.closed]);
    connection.close();
    if (!Array.isArray(reply)) return;
    const isHere = epoch === home;
    if (reply[0] === Op.MISROUTED) this.tally.count("misroute");
    if (reply[0] === Op.MISROUTED && isHere) this.tally.wrong(`an answer of ${epoch} was sent on by its own origin`);
    if (reply[0] === Op.RESUMED && !isHere) this.tally.wrong(`an answer of ${home} was resumed at ${epoch}`);
  }
}
