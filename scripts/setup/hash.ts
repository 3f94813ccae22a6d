/** Hashes of files, and stamps that save computing them again. */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readFile, stat, writeFile } from "node:fs/promises";

export async function sha256OfFile(path: string): Promise<string> {
  return hashOfFile(path, "sha256");
}

/** @param prefix hashed before the file's bytes. @returns hex. */
export async function hashOfFile(path: string, algorithm: "sha256" | "sha1", prefix = ""): Promise<string> {
  const hash = createHash(algorithm).update(prefix);
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

interface Stamp {
  bytes: number;
  modifiedMs: number;
  hash: string;
}

const stampPath = (path: string): string => `${path}.stamp.json`;

/** Writes beside a file whose hash was just checked what it looked like then. */
export async function writeStamp(path: string, hash: string): Promise<void> {
  const { size, mtimeMs } = await stat(path);
  const stamp: Stamp = { bytes: size, modifiedMs: mtimeMs, hash };
  await writeFile(stampPath(path), `${JSON.stringify(stamp)}\n`);
}

/** The hash that was checked, if the file still looks as it did then. */
export async function stampedHash(path: string): Promise<string | undefined> {
  try {
    const stamp = JSON.parse(await readFile(stampPath(path), "utf8")) as Stamp;
    const { size, mtimeMs } = await stat(path);
    return stamp.bytes === size && stamp.modifiedMs === mtimeMs ? stamp.hash : undefined;
  } catch {
    return undefined;
  }
}
