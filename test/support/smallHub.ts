/** A Hugging Face hub of the tests' own, on loopback: the file endpoint that `@huggingface/hub` reads, with ranges, tokens and faults. */
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface HubFile {
  content: Buffer;
  /** What the hub calls the file's hash. Default: the truth. */
  etag?: string;
  /** Needed to read it. */
  token?: string;
}

export interface SeenRequest {
  path: string;
  range: string | undefined;
  authorization: string | undefined;
}

export class SmallHub {
  /** `OWNER/REPO/FILE` to its content. */
  readonly files = new Map<string, HubFile>();
  readonly seen: SeenRequest[] = [];
  /** Each transfer (but not the question for a file's size) breaks off after this many bytes, this many times. */
  breakOff = { afterBytes: 0, times: 0 };

  private constructor(private readonly server: Server) {}

  static async start(): Promise<SmallHub> {
    const server = createServer();
    const hub = new SmallHub(server);
    server.on("request", (request, response) => hub.#answer(request, response));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return hub;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  /** The first byte of each transfer so far, in order. */
  get transfers(): number[] {
    return this.seen.filter(({ range }) => range !== "bytes=0-0").map(({ range }) => Number(/^bytes=(\d+)-/.exec(range ?? "")?.[1] ?? 0));
  }

  async stop(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const { authorization, range } = request.headers;
    const path = decodeURIComponent(request.url ?? "");
    this.seen.push({ path, range, authorization });
    const [, repo, name] = /^\/([^/]+\/[^/]+)\/resolve\/main\/(.+)$/.exec(path) ?? [];
    const inRepo = [...this.files.keys()].some((key) => key.startsWith(`${repo}/`));
    const file = this.files.get(`${repo}/${name}`);
    if (!inRepo) refuse(response, 404, "RepoNotFound", "Repository not found");
    else if (!file) refuse(response, 404, "EntryNotFound", "Entry not found");
    else if (file.token && authorization !== `Bearer ${file.token}`) refuse(response, 401, "GatedRepo", "Access to it is restricted");
    else this.#send(response, file, range);
  }

  #send(response: ServerResponse, file: HubFile, range: string | undefined): void {
    const { content } = file;
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(range ?? "") ?? [];
    const start = Number(from ?? 0);
    const end = Math.min(Number(to ?? content.length - 1), content.length - 1);
    response.setHeader("x-linked-etag", file.etag ?? `"${createHash("sha256").update(content).digest("hex")}"`);
    response.setHeader("content-length", end - start + 1);
    if (range) response.setHeader("content-range", `bytes ${start}-${end}/${content.length}`);
    response.statusCode = range ? 206 : 200;
    const breaks = range !== "bytes=0-0" && this.breakOff.times > 0;
    if (!breaks) return void response.end(content.subarray(start, end + 1));
    this.breakOff.times--;
    response.write(content.subarray(start, start + this.breakOff.afterBytes), () => response.destroy());
  }
}

function refuse(response: ServerResponse, status: number, code: string, error: string): void {
  response.writeHead(status, { "content-type": "application/json", "x-error-code": code });
  response.end(JSON.stringify({ error }));
}
