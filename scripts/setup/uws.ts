/**
 * The native uWebSockets.js binary comes prebuilt, in a package that repackages its author's releases. What the origin loads is
 * therefore pinned by hash, for the platforms and Node versions that are tried; docs/operations.md repeats the table.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { SetupError } from "./exec.js";
import { sha256OfFile } from "./hash.js";

/** `<platform>_<arch>_<module ABI>` to SHA-256, for uWebSockets.js v20.x as packed in uwebsockets 3.0.6. ABI 115: Node 20, 127: 22, 137: 24. */
export const pinnedBinaries: Readonly<Record<string, string>> = {
  linux_x64_115: "f4fa5d7b697529b45ac8aa3d57385d9af51bc1d2b26aa9f5b68ca4361542e665",
  linux_x64_127: "78e38a9a163b1cf33ce539619e5908111dea95a12e7943d95fbcdd524879caa8",
  linux_x64_137: "3b549c14e01d9d1faf234cdf4b6f0fb08158605e3692cd0eb1b905e327bd3449",
  linux_arm64_115: "034e0fcccdc08f90df3b130f421516311831b1352fe38eab91abc2984c2fdf3a",
  linux_arm64_127: "a7d9bc3ec166421a49416d5ea4f49118ae68ea1dbf8a765c4f45a79b0b6adb13",
  linux_arm64_137: "b6eb007d627e00bcce03ad38f197124e9027c03f6fe784b37f97b8a6ea709cb4",
};

/** @param running names the binary this Node loads. @throws SetupError with both hashes, or with what is supported. */
export async function checkUwsBinary(folder: string, running = runningBinary()): Promise<void> {
  const pinned = pinnedBinaries[running];
  if (!pinned)
    throw new SetupError(
      `no uWebSockets.js binary is pinned for ${running}; millrace runs on ${Object.keys(pinnedBinaries).join(", ")}: use Node 20, 22 or 24 on Linux`,
    );
  const path = join(folder, `uws_${running}.node`);
  if (!existsSync(path)) throw new SetupError(`${path} is missing: remove node_modules and run the command again`);
  const found = await sha256OfFile(path);
  if (found !== pinned)
    throw new SetupError(
      `${path} has SHA-256 ${found}, but ${pinned} is pinned: it is not the binary that was reviewed; remove node_modules and run the command again, ` +
        "and if it stays so, do not run it",
    );
}

export function runningBinary(): string {
  return `${process.platform}_${process.arch}_${process.versions.modules}`;
}
