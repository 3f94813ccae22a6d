/** A text as windows of tokens, each scored on its own: what llama-perplexity does, so that its figures and ours mean the same. */
import type { Vocabulary } from "../../engine/binding/index.js";
import { ChatTokenizer } from "../../origin/chat/tokenizer.js";
import { SetupError } from "../setup/exec.js";

/** The text's tokens; nothing in it is taken for a special token. */
export async function tokensOfText(vocabulary: Vocabulary, text: string): Promise<Int32Array> {
  return new ChatTokenizer(vocabulary).encode([{ from: "content", text }]);
}

/**
 * Whole windows of `size` tokens; what is left over at the end is not scored. Each starts with the begin-of-text token where the model
 * wants one, in place of its own first.
 */
export function windowsOf(tokens: Int32Array, vocabulary: Vocabulary, size: number, skip: number): Int32Array[] {
  const count = Math.floor(tokens.length / size);
  if (count === 0)
    throw new SetupError(
      `the text has ${tokens.length} tokens, less than one window of ${size}; give a longer one, or a smaller --window (--skip is ${skip})`,
    );
  return Array.from({ length: count }, (_, index) => {
    const window = tokens.slice(index * size, (index + 1) * size);
    if (vocabulary.addBos && vocabulary.bosToken >= 0) window[0] = vocabulary.bosToken;
    return window;
  });
}
