/** The bounds of a client's own waits; those that both ends share are in shared/limits.ts. */
export const clientLimits = {
  /** How long a CANCEL may go unanswered before the answer ends without its DONE. */
  cancelMs: 5_000,
  /** PINGs that may fail to arrive before the client takes a silent socket for dead. */
  silentPingsMax: 3,
  /** The shortest and longest rhythm of PINGs believed of a HELLO. */
  pingEveryMsMin: 1_000,
  pingEveryMsMax: 600_000,
  /** The first wait before connecting again, which doubles to the longest. */
  backoffMsMin: 500,
  backoffMsMax: 15_000,
} as const;
