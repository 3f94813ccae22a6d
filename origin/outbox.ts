/** The one way out of a session: messages to bytes to the socket, with nothing in between for what goes out with every token. */
import { encode } from "../shared/codec.js";
import type { ServerMessage } from "../shared/protocol.js";
import { encodeTokens } from "../shared/tokensFrame.js";

/** The one thing a session needs of a socket. */
export interface SessionSocket {
  /** Takes the bytes within the call: they are another message's after it. False where too many wait already; the session then ends. */
  send(bytes: Uint8Array): boolean;
  /** Bytes wait for the client to read. `Session.drained` is called once none do. */
  isFull(): boolean;
  /** Sends a last message, which is always taken, and closes. The session hears `closed()`, perhaps within this call. */
  close(code: number, reason: string, last?: Uint8Array): void;
}

export class Outbox {
  /** Whether anything was sent since `takeHasSent`: when exactly, nobody asks at every token. */
  #hasSent = false;
  #isClosed = false;

  /** @param onOverflow is called where the socket took no more; the session then ends. */
  constructor(
    private readonly socket: SessionSocket,
    private readonly onOverflow: () => void,
  ) {}

  get isClosed(): boolean {
    return this.#isClosed;
  }

  get isFull(): boolean {
    return this.socket.isFull();
  }

  send(message: ServerMessage): void {
    this.#write(encode(message));
  }

  /** TOKENS without ids. */
  sendTokens(stream: number, seq: number, text: string, flags: number): void {
    this.#write(encodeTokens(stream, seq, text, flags));
  }

  /** Whether anything was sent since it was asked last. */
  takeHasSent(): boolean {
    const hasSent = this.#hasSent;
    this.#hasSent = false;
    return hasSent;
  }

  /** Nothing is sent any more. */
  close(): void {
    this.#isClosed = true;
  }

  #write(bytes: Uint8Array): void {
    if (this.#isClosed) return;
    this.#hasSent = true;
    if (!this.socket.send(bytes)) this.onOverflow();
  }
}
