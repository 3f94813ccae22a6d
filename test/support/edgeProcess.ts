/** The edge as a process of its own: in workerd alone, as it runs at Cloudflare, or under wrangler's development server with the page. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import type { Bindings } from "../../edge/bindings.js";
import { dotenvOf } from "../../scripts/dev-keys.js";
import { ServerProcess } from "../../scripts/setup/child.js";
import { quietWrangler } from "../../scripts/setup/wrangler.js";
import { compatibility } from "./compatibility.js";

export const root = fileURLToPath(new URL("../..", import.meta.url));
/** The package exports the path of the program for this machine, and has no types. */
const { default: workerdPath } = createRequire(import.meta.url)("workerd") as { default: string };
const readyMsMax = 30_000;
const stopMsMax = 5_000;

export interface EdgeProcess {
  /** Its base, without a slash at the end. */
  url: string;
  pid: number;
  stop(): Promise<void>;
}

/** `workerd` is one process without assets or any layer of development; `wrangler` serves `dist/page`, which must have been built. */
export type EdgeKind = "workerd" | "wrangler";

export async function startEdge(kind: EdgeKind, bindings: Bindings, onLine: (line: string) => void): Promise<EdgeProcess> {
  const folder = mkdtempSync(join(tmpdir(), "millrace-edge-"));
  const server = kind === "workerd" ? await workerd(folder, bindings, onLine) : wrangler(folder, bindings, onLine);
  const stop = async (): Promise<void> => {
    await server.stop();
    rmSync(folder, { recursive: true, force: true });
  };
  try {
    const [, port] = await server.ready;
    return { url: `http://127.0.0.1:${port}`, pid: server.pid, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function workerd(folder: string, bindings: Bindings, onErrorLine: (line: string) => void): Promise<ServerProcess> {
  await bundleEdge(join(folder, "edge.js"));
  writeFileSync(join(folder, "edge.capnp"), workerdConfig(bindings), { mode: 0o600 });
  return new ServerProcess({
    name: "workerd",
    program: workerdPath,
    // It reports on the given file descriptor which port the system chose.
    args: ["serve", "edge.capnp", "--control-fd=1"],
    cwd: folder,
    env: process.env,
    ready: /"event":"listen","socket":"http","port":(\d+)/,
    readyMsMax,
    stopMsMax,
    onErrorLine,
  });
}

function wrangler(folder: string, bindings: Bindings, onErrorLine: (line: string) => void): ServerProcess {
  const envFile = join(folder, "edge.env");
  writeFileSync(envFile, dotenvOf(bindings as Record<string, string>), { mode: 0o600 });
  const flags = ["--ip", "127.0.0.1", "--port", "0", "--inspector-port", "0", "--show-interactive-dev-session=false"];
  return new ServerProcess({
    name: "wrangler",
    args: ["node_modules/wrangler/bin/wrangler.js", "dev", "--env-file", envFile, ...flags],
    cwd: root,
    env: { ...process.env, ...quietWrangler(folder) },
    ready: /Ready on http:\/\/127\.0\.0\.1:(\d+)/,
    readyMsMax,
    stopMsMax,
    onErrorLine,
  });
}

/** As wrangler bundles it. */
async function bundleEdge(outfile: string): Promise<void> {
  const conditions = ["workerd", "worker", "browser"];
  await build({ entryPoints: [join(root, "edge/index.ts")], outfile, bundle: true, format: "esm", target: "es2022", conditions });
}

function workerdConfig(bindings: Bindings): string {
  const texts = Object.entries(bindings).map(([name, text]) => `(name = ${quoted(name)}, text = ${quoted(text)})`);
  return `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "edge", worker = (
      modules = [(name = "edge.js", esModule = embed "edge.js")],
      compatibilityDate = ${quoted(compatibility.date)},
      compatibilityFlags = [${compatibility.flags.map(quoted).join(", ")}],
      bindings = [${texts.join(", ")}],
      globalOutbound = "loopback",
    )),
    # Workers reach public addresses alone unless told otherwise, and this one's origins are on loopback.
    (name = "loopback", network = (allow = ["local"])),
  ],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "edge")],
);
`;
}

/** Cap'n Proto's text literals escape as JSON's do, for what stands in bindings. */
function quoted(text: string): string {
  return JSON.stringify(text);
}
