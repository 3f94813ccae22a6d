/** Who may import whom. */
import { posix } from "node:path";
import { findAll, isCpp, isScript, type RepositoryFile, type Rule } from "./files.js";

const arrows: Record<string, readonly string[]> = {
  shared: [],
  client: ["shared"],
  edge: ["shared", "client"],
  origin: ["shared"],
  engine: [],
};

/** The one file of each that knows a native part. */
const bindingUser = "origin/native.ts";
const socketUser = "origin/socket.ts";

const importPattern = /(?:^|\n)\s*(?:import|export)\s[^;"']*?from\s+"([^"]+)"|(?:^|\n)\s*import\s+"([^"]+)"|\bimport\("([^"]+)"\)/g;

const folderOf = (path: string): string => path.split("/")[0] as string;

export const importArrows: Rule = (files) =>
  files.filter(isScript).flatMap((file) => {
    const from = folderOf(file.path);
    const allowed = arrows[from];
    if (!allowed) return [];
    return findAll(file, importPattern, (match) => {
      const specifier = (match[1] ?? match[2] ?? match[3]) as string;
      if (!specifier.startsWith(".")) return undefined;
      const target = posix.join(posix.dirname(file.path), specifier);
      const to = folderOf(target);
      if (to === from || allowed.includes(to)) return undefined;
      if (target.startsWith("engine/binding/") && file.path === bindingUser) return undefined;
      const may = allowed.length > 0 ? `${from}/ may import ${allowed.join(" and ")}` : `${from}/ may import no other folder`;
      return `imports ${target}, but ${may}; move what both need into shared/, or hand it in as an argument`;
    });
  });

export const oneSocketFile: Rule = (files) =>
  files
    .filter((file) => isScript(file) && file.path !== socketUser)
    .flatMap((file) =>
      findAll(file, importPattern, (match) =>
        (match[1] ?? match[2] ?? match[3])?.toLowerCase().startsWith("uwebsockets")
          ? `imports uWebSockets.js, which only ${socketUser} may; go through what ${socketUser} exports`
          : undefined,
      ),
    );

const includePattern = /^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]/gm;
/** Threads, clocks, devices and I/O: the scheduler is simulated in tests, so it has none of them. */
const notInSchedule =
  /^(thread|mutex|shared_mutex|atomic|condition_variable|future|semaphore|latch|barrier|stop_token|chrono|ctime|time\.h|fstream|iostream|cstdio|unistd\.h|cuda.*|.*\.cuh|.*base\/(clock|team)\.h)$/;

export const engineIncludes: Rule = (files) => {
  const cpp = files.filter((file) => isCpp(file) && file.path.startsWith("engine/"));
  const paths = new Set(cpp.map((file) => file.path));
  return cpp.flatMap((file) =>
    findAll(file, includePattern, (match) => {
      const [, kind, name] = match as unknown as [string, string, string];
      if (file.path.startsWith("engine/src/schedule/") && notInSchedule.test(name))
        return `includes ${name}, but the scheduler has no threads, no clock, no I/O and no device; hand it in from engine.cpp`;
      if (kind === "<" || isInEngine(file, name, paths)) return undefined;
      return `includes "${name}", which is no file of engine/; the engine includes nothing outside its own folder`;
    }),
  );
};

/** A quoted include is found beside its file, or from one of the folders that CMake gives the compiler. */
function isInEngine(file: RepositoryFile, name: string, paths: Set<string>): boolean {
  const bases = [posix.dirname(file.path), "engine/src", "engine/include", "engine/test", "engine"];
  return bases.some((base) => paths.has(posix.join(base, name)));
}
