/** The bounds of a client's own waits; those that both ends share are in shared/limits.ts. */
export const clientLimits = {
  /** How long a CANCEL may go unanswered before the answer ends for its reader without its DONE. */
  cancelMs: 5_000,
  /** PINGs that may fail to arrive before the client takes a silent socket for dead. */
  silentPingsMax: 3,
  /** The shortest and longest rhythm of PINGs believed of a HELLO. */
  pingEveryMsMin: 1_000,
  pingEveryMsMax: 600_000,
  /** How much later than its rhythm a PING may come before a page that was asleep doubts its socket. */
  pingLateMs: 5_000,
  /** The first wait before connecting again, which doubles to the longest. */
  backoffMsMin: 500,
  backoffMsMax: 15_000,
  /** A connection that was of use is replaced within this: at once, but not by all clients of an edge in the same instant. */
  redialJitterMs: 100,
  /** A connection that brought nothing and lived for less counts as a failure like one that did not open. */
  steadyMs: 5_000,
  /** The longest wait that is taken from a server's word. */
  retryAfterMsMax: 3_600_000,
  /** How long an answer may be without a connection to its origin before it is given up: the longest grace of any class. */
  awayMsMax: 600_000,
  /** Streams that a connection has had when an origin may take no further ones on it. */
  wornStreamsMin: 1_024,
  /** Answers that have ended and may still be truncated over the socket that they came by. */
  endedStreamsMax: 64,
  /** The window of an answer that pauses in hidden pages and was given none, in tokens. */
  hiddenWindowTokens: 64,
  /** Characters of JSON that one name in sessionStorage may take. */
  keptCharsMax: 1_000_000,
} as const;
