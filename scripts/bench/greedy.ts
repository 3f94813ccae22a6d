/** How the engine is asked where nothing is to depend on luck: the likeliest token each time, and nothing else. */
export const greedy = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 1,
  stop: [] as string[],
};
