/** Which messages of a conversation a context has room for: its oldest turns go first and whole, so that what is left still reads. */
import type { ChatMessage } from "../../shared/protocol.js";

/**
 * A turn is a user's message and everything up to the next one. The system message at the top and the last turn always stay.
 * @param count how many tokens a conversation's prompt takes; called O(log turns) times.
 * @returns the longest conversation whose prompt is at most tokensMax, and how many messages are missing from it; undefined if even
 *   the shortest is too long.
 */
export async function fitConversation(
  messages: readonly ChatMessage[],
  tokensMax: number,
  count: (messages: readonly ChatMessage[]) => Promise<number>,
): Promise<{ messages: readonly ChatMessage[]; dropped: number } | undefined> {
  const { head, turns } = splitTurns(messages);
  const without = (dropped: number): ChatMessage[] => [...head, ...turns.slice(dropped).flat()];
  // Fewer turns never take more tokens, so the fewest to drop is found by halving.
  let low = 0;
  let high = Math.max(0, turns.length - 1);
  if ((await count(without(high))) > tokensMax) return undefined;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((await count(without(middle))) <= tokensMax) high = middle;
    else low = middle + 1;
  }
  const kept = without(high);
  return { messages: kept, dropped: messages.length - kept.length };
}

/** What stands before the first user's message, other than system messages, belongs to the first turn. */
function splitTurns(messages: readonly ChatMessage[]): { head: ChatMessage[]; turns: ChatMessage[][] } {
  const head = messages.slice(
    0,
    Math.max(
      0,
      messages.findIndex(([role]) => role !== "system"),
    ),
  );
  const turns: ChatMessage[][] = [];
  for (const message of messages.slice(head.length)) {
    const current = turns.at(-1);
    if (!current || (message[0] === "user" && current.some(([role]) => role === "user"))) turns.push([message]);
    else current.push(message);
  }
  return { head, turns };
}
