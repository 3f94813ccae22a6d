import { MillraceError } from "../../shared/errors.js";
import type { Origin } from "./registry.js";

/**
 * Opens a stream on the first origin that takes it. One that cannot now (unreachable, loading, draining, overloaded) is passed over;
 * any other refusal is final, since the next origin would give the same.
 * @param open rejects with a MillraceError that says why an origin did not take it.
 * @throws MillraceError the last origin's refusal.
 */
export async function openOnFirst(origins: readonly Origin[], open: (origin: Origin) => Promise<Response>): Promise<Response> {
  let refusal: unknown;
  for (const origin of origins) {
    try {
      return await open(origin);
    } catch (error) {
      if (!(error instanceof MillraceError) || error.retry !== "later") throw error;
      refusal = error;
    }
  }
  throw refusal;
}
