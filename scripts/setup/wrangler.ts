import { join } from "node:path";

/** An environment in which wrangler sends and looks up nothing, and writes nothing outside `root`. */
export function quietWrangler(root: string): NodeJS.ProcessEnv {
  return {
    WRANGLER_SEND_METRICS: "false",
    WRANGLER_SEND_ERROR_REPORTS: "false",
    WRANGLER_HIDE_BANNER: "true",
    WRANGLER_LOG_PATH: join(root, ".wrangler/logs"),
    WRANGLER_REGISTRY_PATH: join(root, ".wrangler/registry"),
    CLOUDFLARE_CF_FETCH_ENABLED: "false",
    NO_COLOR: "1",
  };
}
