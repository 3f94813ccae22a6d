/** What may be in git: no secrets, no addresses of somebody's machine or registry, nothing large. */
import { findAll, isLock, isRule, type Rule } from "./files.js";

const fileBytesMax = 1_048_576;

export const fileSizes: Rule = (files) =>
  files
    .filter(({ bytes }) => bytes > fileBytesMax)
    .map(({ path, bytes }) => `${path}:1: has ${bytes} bytes, over ${fileBytesMax}; fetch it by its hash, or have a script make it`);

export const lockHasNoAddresses: Rule = (files) =>
  files
    .filter(isLock)
    .flatMap((file) =>
      findAll(file, /"resolved"/g, () => "names a download address; .npmrc leaves them out: remove the line and run npm install again"),
    );

/** Hosts that are nobody's, by RFC 2606 and 6761, and the documents and models that we point readers to; where packages come from is none. */
const reservedHosts = /^(?:localhost|127\.0\.0\.1|(?:.+\.)?(?:example\.com|example|test|invalid))$/i;
const namedHosts = new Set(["github.com", "huggingface.co", "nodejs.org", "www.w3.org", "xn--mnchen-3ya.de"]);
const hosts = /\bhttps?:\/\/([\w-]+(?:\.[\w-]+)*)/gi;
const developerPaths = /(?<![\w.~}$-])\/(?:home\/[a-z]\w*|Users\/\w+|root\/|work\/|mnt\/[a-z]\w*)/g;

export const noAddresses: Rule = (files) =>
  files
    .filter((file) => !isRule(file) && !isLock(file))
    .flatMap((file) => [
      ...findAll(file, hosts, ([, host = ""]) =>
        reservedHosts.test(host) || namedHosts.has(host.toLowerCase())
          ? undefined
          : `names the host ${host}; leave where things come from to the user's own configuration, or use a name that ends in .test`,
      ),
      ...findAll(file, developerPaths, ([path]) => `names ${path}, a place on somebody's machine; compute it, or take it as an argument`),
    ]);

/** Shapes of what opens something. A test that needs a key makes it. */
const secrets: [what: string, pattern: RegExp][] = [
  ["a private key", /-----BEGIN [A-Z ]*PRIVATE KEY-----/g],
  ["the private part of a JWK", /["']?\bd["']?\s*:\s*["'][A-Za-z0-9_-]{42,}["']/g],
  ["a signed token", /\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}/g],
  ["a Hugging Face token", /\bhf_[A-Za-z0-9]{30,}/g],
  ["a GitHub token", /\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})/g],
  ["an npm token", /\bnpm_[A-Za-z0-9]{30,}|_authToken\s*=/g],
  ["an AWS key", /\bAKIA[0-9A-Z]{16}\b/g],
];

export const noSecrets: Rule = (files) =>
  files
    .filter((file) => !isRule(file) && !isLock(file))
    .flatMap((file) =>
      secrets.flatMap(([what, pattern]) =>
        findAll(file, pattern, () => `looks like ${what}; remove it, and if it was real, revoke it: git keeps what it has seen`),
      ),
    );
