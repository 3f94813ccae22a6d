/**
 * What workerd has beyond the DOM's types, declared by hand: Cloudflare's own type package redefines half of the DOM's globals, and
 * the client's code, compiled in the same program, must not see a browser that can do more than browsers can.
 */

/** One end of a WebSocketPair. Nothing flows until `accept`. */
export interface PairedSocket extends EventTarget {
  accept(): void;
  send(data: Uint8Array | string): void;
  close(code?: number, reason?: string): void;
}

/** In workerd a 101 response carries the socket that the upgrade opened. */
export interface UpgradedResponse extends Response {
  readonly webSocket: PairedSocket | null;
}

declare const WebSocketPair: new () => { 0: PairedSocket; 1: PairedSocket };

/** Two ends of one socket: what is sent into one comes out of the other. */
export function socketPair(): { client: PairedSocket; server: PairedSocket } {
  const pair = new WebSocketPair();
  return { client: pair[0], server: pair[1] };
}

/** The answer that completes an upgrade and hands `socket` to the client. */
export function upgradeResponse(socket: PairedSocket, headers: Record<string, string>): Response {
  return new Response(null, { status: 101, headers, webSocket: socket } as ResponseInit);
}

/** Whether an upgrade succeeded, as far as its response tells. */
export function isUpgraded(response: Response): boolean {
  return (response as UpgradedResponse).webSocket != null;
}
