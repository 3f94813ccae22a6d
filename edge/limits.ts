import { limits } from "../shared/limits.js";

/** The edge's own bounds; those it shares with the origin and the SDK stand in shared/limits.ts. */
export const edgeLimits = {
  originsMax: 16,
  /** How long one origin may take to answer an upgrade before the next is tried. */
  originAnswerMs: 5_000,
  /** Most of an origin's error body that is read. */
  originErrorBytesMax: 4_096,
  /** A JWT or ticket longer than this is refused unread. */
  tokenBytesMax: 8_192,
  /** HMAC keys shorter than the hash they feed can be guessed (RFC 7518, section 3.2). */
  secretBytesMin: 32,
  corsMaxAgeS: 86_400,
} as const;

/** What a session may do where its JWT does not lower it. */
export const sessionDefaults = { streamsMax: limits.streamsMax, tokensMax: 16_384 } as const;
