// Picks a sequence's next token from its logits: penalties, then temperature, top-k, top-p, min-p, then one draw.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine.h"

namespace millrace {

class Sampler {
 public:
  Sampler(const SamplingOptions& options, std::span<const int32_t> prompt);

  // The token at `position` of the sequence. Overwrites the logits. Ties go to the lower id.
  int32_t sample(std::span<float> logits, uint64_t position);
  // Counts a token that became part of the answer.
  void accept(int32_t token);

 private:
  struct Candidate {
    int32_t token;
    float weight;  // exp((logit - highest) / temperature)
  };
  struct Seen {
    bool anywhere = false;  // in prompt or answer: the repetition penalty's
    int generated = 0;      // in the answer alone: the presence and frequency penalties'
  };

  void penalize(std::span<float> logits) const;
  // The likeliest candidates in falling order, as many as top-k, top-p and min-p leave.
  void choose_candidates(std::span<const float> logits, float highest);

  SamplingOptions options_;
  std::unordered_map<int32_t, Seen> seen_;
  std::vector<Candidate> candidates_;
};

}  // namespace millrace
