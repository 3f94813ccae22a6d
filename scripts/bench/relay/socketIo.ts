/** Socket.IO, installed on demand into the ignored folder of peers. */
import { existsSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { must, peersFolder } from "../peers.js";

const version = "4.8.4";
const folder = join(peersFolder, "socket.io");

export const socketIoEntry = join(folder, "node_modules/socket.io/wrapper.mjs");
export const socketIoName = `Socket.IO ${version}`;

/** @throws SetupError saying why it cannot be had. */
export async function installSocketIo(say: (line: string) => void): Promise<void> {
  if (existsSync(socketIoEntry)) return;
  say(`installing ${socketIoName} in ${folder}`);
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, "package.json"), '{ "private": true, "type": "module" }\n');
  await must("npm", ["install", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund", `socket.io@${version}`], folder);
}
