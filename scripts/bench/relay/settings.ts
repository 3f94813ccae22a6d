/** What `npm run bench -- relay` measures, for how long, and what it is held against. */

/** Seconds, counts and rounds, for a whole run and for `--quick`. */
export interface Lengths {
  /** Of a trial that looks for the limit, and of one that is quoted. */
  searchS: number;
  windowS: number;
  /** How near to the limit the search goes, as a part of it. */
  precision: number;
  /** Of every contender, in turns. */
  cpuRounds: number;
  pairs: number;
  /** After the last socket opened, before memory is read. */
  memoryS: number;
}

export const lengths = {
  full: { searchS: 5, windowS: 20, precision: 0.06, cpuRounds: 5, pairs: 5_000, memoryS: 20 },
  quick: { searchS: 3, windowS: 6, precision: 0.12, cpuRounds: 2, pairs: 500, memoryS: 8 },
} as const satisfies Record<string, Lengths>;

export const bars = {
  latency: { p99Ms: 10, directStreams: 2_000, throughStreams: 500, loadMax: 0.6 },
  crowd: { bytesAStream: 40_960 },
  cpuRatio: 1.4,
  addedP50Ms: 0.6,
  slowReaders: { p99Ratio: 1.1 },
  bytesPerToken: 17,
} as const;

/** (a): each stream is a socket of its own. */
export const latency = { tokensPerSecond: 20, fromStreams: { direct: 1_000, workerd: 250 } } as const;
/** (b): memory is the slope between the two. */
export const crowd = { tokensPerSecond: 2, sockets: [2_000, 10_000] } as const;
/** (c): as many answers as the origin has slots, each of a few tokens. */
export const burst = { sockets: 1_000, starts: 10_000, withinS: 3, tokensPerSecond: 2, answerTokens: 8 } as const;
/** (d): a token every 10 ms, so that a display frame has more than one, for as many sockets as the busiest contender bears. */
export const cpu = { socketsMax: 400, socketsFactor: 0.75, tokensPerSecond: 100, busyMax: 0.6, trialS: 3 } as const;
/** (e): the streams that keep the path busy while one more socket asks. */
export const roundTrips = { busyStreams: [0, 1_000], tokensPerSecond: 5, warmUpPairs: 500, answerMsMax: 5_000 } as const;
/** (f): all at a rate at which a kernel's buffer is full within the minute. */
export const slowReaders = { stopped: 5, streamsEach: 64, others: 200, tokensPerSecond: 100, fullMsMax: 90_000, everyMs: 500 } as const;
/** Microseconds from one sample of the origin's profile to the next, and how many functions are named. */
export const profile = { everyUs: 200, rows: 20 } as const;

export const running = {
  /** STARTs a second, where they are not what is measured: tokenizing them shall hold nobody up. */
  startsPerSecond: 400,
  /** Between the last answer's beginning and the window: what was compiled for the beginning is not what runs on. */
  warmUpS: 2,
  /** A path that delivers less of what is due, or half of whose tokens are later than one interval, is over its limit. */
  deliveredMin: 0.98,
  /** Of the origin, so that all sockets find a slot and no answer ends. */
  contextTokens: 32_768,
  answerTokensMax: 1_000_000,
  maxTokens: 16_000,
  /** An origin takes no more (origin/bounds.ts). */
  socketsMax: 10_000,
  ticketsAtOnce: 16,
  /** How long sockets may take to open, and streams to be answered after their STARTs went out. */
  openMsMax: 60_000,
  answerMsMax: 60_000,
  reportMsMax: 10_000,
} as const;
