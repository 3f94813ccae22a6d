/**
 * One file from the Hugging Face hub, into the cache. What an interruption left is continued where it stopped; the file gets its name
 * only after its hash is the one the hub gave. Once here, the hub is not asked again.
 */
import { existsSync } from "node:fs";
import { mkdir, open, readdir, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { downloadFile, type FileDownloadInfoOutput, fileDownloadInfo, type HubApiError } from "@huggingface/hub";
import { SetupError } from "./exec.js";
import { hashOfFile, stampedHash, writeStamp } from "./hash.js";
import { mebibytes, type Part } from "./progress.js";

/** How often a transfer that breaks off is continued before the command gives up. */
const attemptsMax = 4;
/** Before the second attempt; each further one waits twice as long. */
const firstPauseMs = 250;

/** @param spec `hf:OWNER/REPO/FILE`; FILE may have folders. @returns the file's path in the cache. */
export async function fetchFromHub(spec: string, cache: string, part: Part): Promise<string> {
  const { repo, file } = parseSpec(spec);
  const path = join(cache, "hub", repo, file);
  if (existsSync(path) && (await stampedHash(path))) {
    part.end();
    return path;
  }
  const request = {
    repo,
    path: file,
    hubUrl: (process.env.HF_ENDPOINT || "https://huggingface.co").replace(/\/+$/, ""),
    ...(process.env.HF_TOKEN && { accessToken: process.env.HF_TOKEN }),
  };
  const info = await ask(request, spec);
  const expected = expectedHash(info, spec);
  await mkdir(dirname(path), { recursive: true });
  // The hash in its name ties a partial file to one version of the file: another version starts anew.
  const partial = `${path}.${expected.hex.slice(0, 16)}.partial`;
  await removeOthers(path, partial);
  await transfer(request, info, partial, part, spec);
  part.at(0.99, "checking");
  const found = await hashOfFile(partial, expected.algorithm, expected.algorithm === "sha1" ? `blob ${info.size}\0` : "");
  if (found !== expected.hex) {
    await rm(partial);
    throw new SetupError(
      `${spec} arrived with ${expected.algorithm} ${found}, but the hub says ${expected.hex}: it was damaged on its way; run the command again`,
    );
  }
  await rename(partial, path);
  await writeStamp(path, expected.hex);
  part.end(`${spec}, ${mebibytes(info.size)}, hash checked, in ${path}`);
  return path;
}

interface HubRequest {
  repo: string;
  path: string;
  hubUrl: string;
  accessToken?: string;
}

export function parseSpec(spec: string): { repo: string; file: string } {
  const [owner = "", name = "", ...rest] = spec.slice("hf:".length).split("/");
  const parts = [owner, name, ...rest];
  // The parts become folders of the cache, so none may be a way out of it.
  if (parts.length < 3 || parts.some((item) => !/^[\w.-]+$/.test(item) || /^\.+$/.test(item)))
    throw new SetupError(`--model ${spec} is not hf:OWNER/REPO/FILE, for example hf:unsloth/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q4_0.gguf`);
  return { repo: `${owner}/${name}`, file: rest.join("/") };
}

async function ask(request: HubRequest, spec: string): Promise<FileDownloadInfoOutput> {
  let info: FileDownloadInfoOutput | null;
  try {
    info = await fileDownloadInfo(request);
  } catch (error) {
    throw explained(error, spec, request);
  }
  if (!info) throw new SetupError(`${spec}: ${request.repo} has no file ${request.path} (${request.hubUrl} says 404)`);
  return info;
}

function explained(error: unknown, spec: string, request: HubRequest): SetupError {
  const status = (error as HubApiError).statusCode;
  if (status === 401 || status === 403)
    return new SetupError(
      `${spec}: ${request.hubUrl} refuses (${status}): the repository is private, gated or does not exist; ` +
        (request.accessToken ? "the token in HF_TOKEN does not open it" : "set HF_TOKEN to a token that may read it"),
    );
  if (status === 404)
    return new SetupError(`${spec}: ${request.hubUrl} has no repository ${request.repo} or no file ${request.path} (404)`);
  const why = error instanceof Error ? `${error.message}${error.cause instanceof Error ? `: ${error.cause.message}` : ""}` : String(error);
  return new SetupError(`${spec} could not be fetched from ${request.hubUrl}: ${why}`);
}

/** Large files have the SHA-256 of their content as etag, small ones Git's own hash. */
function expectedHash(info: FileDownloadInfoOutput, spec: string): { algorithm: "sha256" | "sha1"; hex: string } {
  const hex = info.etag.replace(/^W\//, "").replaceAll('"', "").toLowerCase();
  if (/^[0-9a-f]{64}$/.test(hex)) return { algorithm: "sha256", hex };
  if (/^[0-9a-f]{40}$/.test(hex)) return { algorithm: "sha1", hex };
  throw new SetupError(`${spec}: the hub gives etag ${info.etag}, which is no hash: what arrives could not be checked`);
}

async function removeOthers(path: string, partial: string): Promise<void> {
  const folder = dirname(path);
  for (const name of await readdir(folder))
    if (name.startsWith(`${basename(path)}.`) && name.endsWith(".partial") && name !== basename(partial)) await rm(join(folder, name));
}

async function transfer(request: HubRequest, info: FileDownloadInfoOutput, partial: string, part: Part, spec: string): Promise<void> {
  let problem: unknown;
  for (let attempt = 1; attempt <= attemptsMax; attempt++) {
    let have = await sizeOf(partial);
    if (have > info.size) {
      await rm(partial); // a server that ignored the range
      have = 0;
    }
    if (have === info.size) return;
    if (attempt > 1) {
      part.at(0, `broke off, continuing at ${mebibytes(have)} (attempt ${attempt} of ${attemptsMax})`);
      await delay(firstPauseMs * 2 ** (attempt - 2));
    }
    try {
      await continueFrom(request, info, partial, have, part);
    } catch (error) {
      problem = error;
    }
  }
  if ((await sizeOf(partial)) !== info.size) throw explained(problem ?? new Error("the transfer ended early each time"), spec, request);
}

async function continueFrom(request: HubRequest, info: FileDownloadInfoOutput, partial: string, from: number, part: Part): Promise<void> {
  // Without xet the library reads plain byte ranges, which is what continuing needs.
  const blob = await downloadFile({ ...request, downloadInfo: info, xet: false });
  if (!blob) throw new Error("the file is gone");
  let done = from;
  // One write at a time, each awaited: when the transfer breaks off, the file's size is where the next one goes on.
  const target = await open(partial, "a");
  try {
    for await (const chunk of blob.slice(from, info.size).stream() as unknown as AsyncIterable<Uint8Array>) {
      await target.writeFile(chunk);
      done += chunk.length;
      part.at((0.99 * done) / info.size, `${mebibytes(done)} of ${mebibytes(info.size)}`);
    }
  } finally {
    await target.close();
  }
}

async function sizeOf(path: string): Promise<number> {
  return stat(path).then(
    (entry) => entry.size,
    () => 0,
  );
}
