// A step's work as the device sees it: lists that the host writes before the step, in memory whose place never changes.
#pragma once

#include <cstdint>

namespace millrace {

// One token of the step. slot < 0: padding, which yields nothing.
struct StepToken {
  int32_t id = 0;
  int32_t position = 0;
  int32_t slot = -1;
  int32_t partial = -1;  // where its tile's context is divided: the number of its first chunk's partial result
};

// A chunk of the context of one token, which is the only one of its row in this step: positions chunk * chunk_tokens and on, as far as the
// token sees. A token's pieces follow one another, its first chunk (0) first: piece `first` to first + count - 1.
struct AttendPiece {
  int32_t token = 0, chunk = 0;
  int32_t first = 0, count = 0;
};

// Consecutive tokens of one row, at consecutive positions, that attend together: to all that they see, or in steps with few tiles to one chunk of it.
struct AttendTile {
  int32_t token = 0, count = 0;
  int32_t chunk = 0;
};

constexpr int bias_flag = 1, penalty_flag = 2, barred_flag = 4, mask_flag = 8, logprobs_flag = 16;

// One token to be sampled, from the logits of one token of the step. Its position in its sequence is that token's plus 1.
struct StepSample {
  int32_t token = 0;     // of the step
  int32_t slot = -1;     // < 0: padding
  int32_t position = 0;  // of the token that is sampled: so many came before it
  int32_t flags = 0;     // what of the rest has a meaning
  float temperature = 0;  // 0: greedy
  int32_t top_k = 0;      // 0: all
  float top_p = 1, min_p = 0;
  uint64_t seed = 0;
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  int32_t generated_from = 0;  // the first position of the answer: what comes before it is the prompt
  int32_t bias_first = 0, bias_count = 0;      // in the step's biases
  int32_t barred_first = 0, barred_count = 0;  // in the step's barred tokens: none of these may be sampled
  int32_t mask = 0;       // its number among the masks
  int32_t logprobs = 0;   // how many of the likeliest are told
};

struct StepBias {
  int32_t token = 0;
  float bias = 0;
};

constexpr int step_logprobs_max = 20;

// What a sample comes back as. The log-probabilities are of the logits as they came: the token's own, then the likeliest ones.
struct SampleResult {
  int32_t token = 0;
  float logprobs[1 + step_logprobs_max] = {};
  int32_t ids[step_logprobs_max] = {};
};

// Where the lists lie, and how many entries each has: on the device too, since a captured graph outlives its step's numbers.
struct StepCounts {
  int32_t tokens = 0, pieces = 0, tiles = 0, samples = 0;
};
struct StepView {
  const StepCounts* counts = nullptr;
  const StepToken* tokens = nullptr;
  const AttendPiece* pieces = nullptr;
  const AttendTile* tiles = nullptr;
  const StepSample* samples = nullptr;
  const StepBias* biases = nullptr;
  const int32_t* barred = nullptr;
  // Of what the graph was captured for: counts stay within them. Host values, for choosing grids.
  int tokens_max = 0, pieces_max = 0, tiles_max = 0, samples_max = 0;
  int chunk_tokens = 0;       // of a piece: a multiple of 16, the same for all steps of this size
  int tile_chunk_tokens = 0;  // of a tile: a multiple of 64; 0: tiles are not divided
};

}  // namespace millrace
