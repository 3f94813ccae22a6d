/** A peer of cpu.ts, run as a program with the tokens a second of each stream: `ws` sends what OpenAI's API would, a chunk of JSON a token. */
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { WebSocketServer } from "ws";
import { announce, streams } from "./peer.js";

const begin = streams(Number(process.argv[2]));
const server = createServer();
new WebSocketServer({ server, perMessageDeflate: false }).on("connection", (socket) => {
  socket.once("message", () => {
    const chunk = {
      id: `chatcmpl-${randomUUID()}`,
      object: "chat.completion.chunk",
      created: Math.floor(Date.now() / 1_000),
      model: "simulated",
    };
    const end = begin((content) => {
      socket.send(JSON.stringify({ ...chunk, choices: [{ index: 0, delta: { content }, finish_reason: null }] }));
    });
    socket.once("close", end);
  });
});
await announce(server);
