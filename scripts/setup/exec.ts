/** Runs a program to its end, handing over its lines as they come. */
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

/** Lines kept to show when a program fails. */
const tailLinesMax = 30;

/** The message says all there is to say: whoever catches it at the top shows no stack trace. */
export class SetupError extends Error {
  override readonly name = "SetupError";
  readonly expected = true;
}

export interface RunOptions {
  cwd?: string;
  env?: NodeJS.ProcessEnv;
  /** Called for each line of stdout and stderr. */
  onLine?: (line: string) => void;
}

export interface RunResult {
  /** The exit status; -1 where the program could not be started or was killed. */
  status: number;
  /** Its last lines, stdout and stderr together. */
  tail: string;
}

export function runProgram(program: string, args: string[], options: RunOptions = {}): Promise<RunResult> {
  return new Promise((resolve) => {
    const tail: string[] = [];
    const child = spawn(program, args, { cwd: options.cwd, env: options.env, stdio: ["ignore", "pipe", "pipe"] });
    const onLine = (line: string): void => {
      tail.push(line);
      if (tail.length > tailLinesMax) tail.shift();
      options.onLine?.(line);
    };
    createInterface({ input: child.stdout }).on("line", onLine);
    createInterface({ input: child.stderr }).on("line", onLine);
    child.on("error", (error) => resolve({ status: -1, tail: error.message }));
    child.on("close", (status, signal) => {
      if (signal) tail.push(`${program} was ended by ${signal}`);
      resolve({ status: status ?? -1, tail: tail.join("\n") });
    });
  });
}
