import { createServer } from "node:net";
import { SetupError } from "./exec.js";

/**
 * The port itself if it is free on loopback, or for 0 one that the system picks.
 * @param who uses it, and `flag` chooses another: both are named when the port is taken.
 */
export async function claimPort(port: number, who: string, flag: string): Promise<number> {
  const server = createServer();
  return new Promise((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "EADDRINUSE")
        reject(new SetupError(`port ${port}, for ${who}, is in use: stop what listens there, or choose another with ${flag} PORT`));
      else reject(new SetupError(`port ${port}, for ${who}, cannot be listened on (${error.message}): choose another with ${flag} PORT`));
    });
    server.listen(port, "127.0.0.1", () => {
      const address = server.address();
      const free = typeof address === "object" && address ? address.port : port;
      server.close(() => resolve(free));
    });
  });
}
