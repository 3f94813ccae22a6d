/** How a command of ours ends when something goes wrong. */
import { pathToFileURL } from "node:url";
import { EngineError } from "../../engine/binding/index.js";
import { SetupError } from "./exec.js";

/** Runs `main` where `url` is the file that Node was started with, and not one that somebody imports. */
export async function runAsCommand(url: string, main: () => Promise<void>): Promise<void> {
  if (!process.argv[1] || url !== pathToFileURL(process.argv[1]).href) return;
  await main().catch((error: unknown) => {
    console.error(isExpected(error) ? error.message : error);
    process.exitCode = 1;
  });
}

/** What the user can put right is said in one sentence; a fault of ours shows where it happened. */
function isExpected(error: unknown): error is Error {
  if (error instanceof SetupError || error instanceof EngineError) return true;
  return error instanceof Error && String((error as NodeJS.ErrnoException).code).startsWith("ERR_PARSE_ARGS");
}
