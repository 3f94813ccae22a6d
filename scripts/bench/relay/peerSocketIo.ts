/** A peer of cpu.ts, run as a program with the tokens a second of each stream: Socket.IO emits an event a token, over WebSocket alone. */
import { createServer } from "node:http";
import { announce, streams } from "./peer.js";
import { socketIoEntry } from "./socketIo.js";

/** What is used of it: it is no dependency, so its types are not here. */
interface SocketIo {
  Server: new (
    server: object,
    options: { transports: string[]; serveClient: boolean },
  ) => { on(event: "connection", connected: (socket: Socket) => void): void };
}
interface Socket {
  once(event: string, happened: () => void): void;
  emit(event: string, data: object): void;
}

const { Server } = (await import(socketIoEntry)) as SocketIo;
const begin = streams(Number(process.argv[2]));
const server = createServer();
new Server(server, { transports: ["websocket"], serveClient: false }).on("connection", (socket) => {
  socket.once("start", () => {
    const end = begin((text, seq) => socket.emit("token", { seq, text }));
    socket.once("disconnect", end);
  });
});
await announce(server);
