import { availableParallelism } from "node:os";
import { cloudflareTest } from "@cloudflare/vitest-pool-workers";
import { defineConfig } from "vitest/config";
import { compatibility } from "./test/support/compatibility.js";

// No test may reach the network: this asks the Workers pool not to look up where on Earth it runs.
process.env.CLOUDFLARE_CF_FETCH_ENABLED = "false";

export default defineConfig({
  test: {
    // Most of what these tests do is wait for other processes: also where there are two cores, two files at a time.
    maxWorkers: Math.max(2, availableParallelism() - 1),
    projects: [
      {
        test: {
          name: "node",
          include: ["test/**/*.test.ts"],
          exclude: ["test/edge/**"],
          // The deadlines inside the tests say what did not happen; these are for a test that lost its own.
          testTimeout: 30_000,
          hookTimeout: 60_000,
        },
      },
      {
        plugins: [cloudflareTest({ miniflare: { compatibilityDate: compatibility.date, compatibilityFlags: compatibility.flags } })],
        test: { name: "edge", include: ["test/edge/**/*.test.ts"] },
      },
    ],
  },
});
