/** Every bound of the protocol and of those who speak it, in one place. Bytes, counts and milliseconds stand last in each name. */
export const limits = {
  /** Largest WebSocket message either side accepts; HELLO repeats it. */
  frameBytesMax: 1_048_576,
  /** Nesting of arrays and maps in one frame. */
  frameDepthMax: 4,
  /** Elements of any one array or map in a frame. */
  frameItemsMax: 262_144,
  /** Streams that may run at once on one socket. */
  streamsMax: 64,
  /** `stream` is 1 to this, and used once a socket. */
  streamNumberMax: 0xffff_ffff,
  messagesMax: 1_024,
  stopsMax: 8,
  stopBytesMax: 256,
  /** Likeliest tokens whose log-probabilities are told with each token. */
  logprobsMax: 20,
  /** Tokens whose logits one START may bias. */
  logitBiasMax: 1_024,
  /** Text of the schema, regular expression or grammar that an answer must follow. */
  formatBytesMax: 65_536,
  /** What a class, or a START, may ask for: the first token, each later one, and how long to wait for a promise. */
  ttftMsMax: 600_000,
  itlMsMax: 60_000,
  waitMsMax: 3_600_000,
  /** Names that clients and origins give: responses, epochs, keys. */
  nameBytesMax: 64,
  resumeTokenBytesMax: 2_048,
  /** Token ids that a restart may bring. */
  continueIdsMax: 131_072,
  /** Sockets that may follow one answer. */
  subscribersMax: 4,
  /** Answers of a tenant that may be parked for want of credit, and for how long at a time. */
  parkedOfTenantMax: 64,
  parkedMs: 60_000,
  /** How long an origin that cannot be reached is tried before answers are restarted elsewhere. */
  failoverWaitMs: 4_000,
  /** Life of a resume token, from the ticket it was bought with. */
  sessionLifeS: 43_200,
  /** How long before a session expires its sockets are told. */
  sessionFarewellMs: 30_000,
  /** Longest error sentence that is sent. */
  errorTextBytesMax: 1_024,
  /** Bytes that may wait in one socket's send buffer before it is closed: a dropped frame must never become a hole. */
  outboxBytesMax: 4_194_304,
  /** The origin sends PING after this much silence; two unanswered end the socket. */
  pingEveryMs: 25_000,
  pingsMissedMax: 2,
  /** Life of a ticket, from its issue to the upgrade. */
  ticketLifeS: 60,
  /** Life of an assertion: the edge signs it and the origin reads it within one upgrade. */
  assertionLifeS: 10,
  /** Clocks of edge and origin may differ by this much. */
  clockSkewS: 5,
  /** Requests that may wait in one engine for a slot. */
  waitingMax: 256,
  /** How long a draining origin lets running answers finish. */
  drainMs: 20_000,
  /** How long a client waits for a socket to open and say HELLO. */
  openMs: 10_000,
} as const;
