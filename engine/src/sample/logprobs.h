// What the model itself thinks of a token: log-probabilities of its own distribution, whatever the sampler then makes of the logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine.h"

namespace millrace {

// Log-softmax of raw logits [vocabulary]: of `sampled`, then of the `count` likeliest tokens in falling order, of equals the lower id first.
// Sums in one order, so that the bits depend on the logits alone. A logit that is no number counts as impossible.
std::vector<TokenLogprob> logprobs_of(std::span<const float> logits, int32_t sampled, int count);

}  // namespace millrace
