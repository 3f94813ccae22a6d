import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { encodeTokens } from "../../shared/tokensFrame.js";

/** The first 1,000 tokens of "Alice's Adventures in Wonderland" as SmolLM2's tokenizer cuts them, a bar between each two. */
const tokens = readFileSync(new URL("fixtures/english-1000-tokens.txt", import.meta.url), "utf8").split("|");

/** RFC 6455, 5.2: a frame that a server sends, which is not masked. */
function headerBytes(payloadBytes: number): number {
  return payloadBytes < 126 ? 2 : payloadBytes < 65_536 ? 4 : 10;
}

// The design's promise: WebSocket header plus payload, one token a frame, in the mean at most 17 bytes. It is a count, not a timing.
test("a token costs at most 17 bytes on the wire", () => {
  expect(tokens).toHaveLength(1_000);
  let total = 0;
  tokens.forEach((text, index) => {
    const payload = encodeTokens(1, index + 1, text, 0).length;
    total += headerBytes(payload) + payload;
  });
  expect(total / tokens.length).toBeLessThanOrEqual(17);
});
