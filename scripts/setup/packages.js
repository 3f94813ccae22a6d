/** Installs the locked npm packages when node_modules is not what package-lock.json says. */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";

/** @returns milliseconds spent, 0 when there was nothing to do. */
export function installPackages(root) {
  if (installed(root)) return 0;
  const started = performance.now();
  console.error("packages: npm ci installs what package-lock.json names ...");
  // npm tells its scripts where it lies; a bare "npm" is for whoever runs bootstrap.js by hand.
  const npm = process.env.npm_execpath ?? "";
  const [program, args] = npm.endsWith("npm-cli.js") ? [process.execPath, [npm]] : ["npm", []];
  // Production flags of the surrounding shell must not leave out what the build needs.
  const env = { ...process.env, NODE_ENV: "development", npm_config_omit: "" };
  const result = spawnSync(program, [...args, "ci", "--no-fund", "--no-audit", "--loglevel=error"], {
    cwd: root,
    stdio: ["ignore", 2, 2],
    env,
  });
  if (result.status !== 0) {
    const why = result.error ? result.error.message : `it ended with ${result.status ?? result.signal}`;
    const error = new Error(`The packages could not be installed: npm ci failed (${why}). What it said stands above.`);
    throw Object.assign(error, { expected: true });
  }
  return performance.now() - started;
}

/**
 * npm writes down what it installed, last of all; each entry must be what the lock names, and nothing but packages for other
 * platforms may be absent. An install that was cut short has not written it.
 */
function installed(root) {
  let hidden;
  try {
    hidden = packagesOf(join(root, "node_modules/.package-lock.json"));
  } catch {
    return false;
  }
  const locked = packagesOf(join(root, "package-lock.json"));
  for (const [path, entry] of Object.entries(locked)) {
    if (path === "") continue;
    const here = hidden[path];
    if (here ? here.version !== entry.version || here.integrity !== entry.integrity : !entry.optional) return false;
  }
  return Object.keys(hidden).every((path) => Object.hasOwn(locked, path));
}

function packagesOf(path) {
  return JSON.parse(readFileSync(path, "utf8")).packages;
}
