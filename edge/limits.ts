import { limits } from "../shared/limits.js";

/** The edge's own bounds; those it shares with the origin and the SDK stand in shared/limits.ts. */
export const edgeLimits = {
  originsMax: 16,
  /** How long one origin may take to answer an upgrade before the next is tried. */
  originAnswerMs: 5_000,
  /** Most of an origin's error body that is read. */
  originErrorBytesMax: 4_096,
  /** How long what an origin said of itself is taken for true, and for how long that it said nothing. */
  probeFreshMs: 2_000,
  probeFailedFreshMs: 500,
  /** How long an origin may take to answer a probe, and with how much. */
  probeAnswerMs: 1_000,
  probeBytesMax: 1_024,
  /** Servers commonly take 4 KiB for a request's whole head, in which an assertion stands beside some 300 bytes. */
  assertionBytesMax: 3_584,
  /** A JWT or ticket longer than this is refused unread. */
  tokenBytesMax: 8_192,
  /** Most that an error's sentence shows of one subprotocol's name. */
  shownNameCharsMax: 24,
  /** HMAC keys shorter than the hash they feed can be guessed (RFC 7518, section 3.2). */
  secretBytesMin: 32,
  corsMaxAgeS: 86_400,
} as const;

/** What a session may do where its JWT does not lower it. */
export const sessionDefaults = { streamsMax: limits.streamsMax, tokensMax: 16_384 } as const;
