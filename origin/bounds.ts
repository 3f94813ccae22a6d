/** The origin's own bounds and defaults; those that the wire knows stand in shared/limits.ts. */
export const bounds = {
  /** Sockets open at once; one more is answered `overloaded`. */
  socketsMax: 10_000,
  /** Stream numbers one socket may use up before it has to be opened anew. */
  streamsUsedMax: 65_536,
  /** Of a socket's outbox, kept free for its last ERROR and its close frame. */
  farewellBytes: 4_096,
  /** How long a socket that is being closed may take to read what waits for it. */
  farewellMs: 5_000,
  /** uWebSockets.js' own idle timeout: a backstop over limits.pingEveryMs and its misses, for sockets that hang while closing. */
  idleTimeoutS: 120,
  /** How often sessions are asked whether a PING is due. */
  tickMs: 1_000,
  /** Where the client leaves maxTokens open and old turns may go: the room made for the answer, at most a quarter of the context. */
  answerTokensMin: 512,
  /** Conversations tokenized at once, of libuv's four threads; of these, such as are longer than so many characters. */
  tokenizeAtOnceMax: 3,
  tokenizeLongAtOnceMax: 2,
  tokenizeLongChars: 32_768,
  /** Conversations that may wait for their turn: of one user, and of all. */
  tokenizeWaitingOfUserMax: 64,
  tokenizeWaitingMax: 512,
  /** When an origin that is full, loading or stopping suggests to come back. */
  retryAfterMs: 1_000,
  /** Longest assertion that is looked at. */
  assertionBytesMax: 4_096,
  /** A key file is a JWK of some 100 bytes. */
  keyFileBytesMax: 16_384,
  /** Largest file of classes and tenants, and most tenants in it. */
  classesFileBytesMax: 1_048_576,
  tenantsMax: 10_000,
  tenantWeightMin: 0.001,
  tenantWeightMax: 1_000,
  /** Tokens in one LOGPROBS, and in one TOKENS; more go as several. */
  logprobsTokensMax: 256,
  tokensAFrameMax: 1_024,
  /** How long an answer that has ended keeps its text, and what all of them may take; the oldest go first. */
  logsKeptMs: 120_000,
  logsKeptBytesMax: 67_108_864,
  /** How long it is known after that how it ended, and of how many answers. */
  tombstonesKeptMs: 600_000,
  tombstonesMax: 65_536,
  /** Ended answers that one socket may still cancel or truncate. */
  endedStreamsMax: 64,
  /** How long a socket without answers stays after GOAWAY, for its client to open the next one first. */
  goawayLingerMs: 2_000,
} as const;

/** What a START that says nothing is sampled with: SmolLM2's model card suggests temperature 0.2 and top-p 0.9; all else is off. */
export const samplingDefaults = {
  temperature: 0.2,
  topK: 0,
  topP: 0.9,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
} as const;
