// Picks a sequence's next token from its logits: bias, penalties, then temperature, top-k, top-p, min-p, then one draw.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine.h"

namespace millrace {

class TokenMask;

class Sampler {
 public:
  Sampler(const SamplingOptions& options, std::span<const int32_t> prompt);

  // The token at `position` of the sequence. Overwrites the logits. Ties go to the lower id.
  int32_t sample(std::span<float> logits, uint64_t position);
  // Counts a token that became part of the answer.
  void accept(int32_t token);
  // None of these is sampled before so many tokens were accepted. `tokens` outlives the sampler.
  void bar(std::span<const int32_t> tokens, int tokens_min) { barred_ = tokens, tokens_min_ = tokens_min; }
  // Only what the mask allows is sampled; it is awaited where it is needed. It outlives the sampler.
  void allow(const TokenMask* mask) { mask_ = mask; }
  // Of the token last sampled, itself first; empty where the options ask for none.
  const std::vector<TokenLogprob>& logprobs() const { return logprobs_; }

  // For a backend that samples elsewhere.
  const SamplingOptions& options() const { return options_; }
  int prompt_tokens() const { return prompt_tokens_; }
  // With so many tokens sampled that are yet to be accepted.
  std::span<const int32_t> barred(int pending = 0) const { return accepted_ + pending < tokens_min_ ? barred_ : std::span<const int32_t>(); }
  const TokenMask* mask() const { return mask_; }

 private:
  struct Candidate {
    int32_t token;
    float weight;  // exp((logit - highest) / temperature)
  };
  struct Seen {
    bool anywhere = false;  // in prompt or answer: the repetition penalty's
    int generated = 0;      // in the answer alone: the presence and frequency penalties'
  };

  int32_t draw(std::span<float> logits, uint64_t position);
  void penalize(std::span<float> logits) const;
  // The likeliest candidates in falling order, as many as top-k, top-p and min-p leave.
  void choose_candidates(std::span<const float> logits, float highest);

  SamplingOptions options_;
  std::unordered_map<int32_t, Seen> seen_;
  std::vector<Candidate> candidates_;
  std::span<const int32_t> barred_;
  const TokenMask* mask_ = nullptr;
  int prompt_tokens_ = 0, tokens_min_ = 0, accepted_ = 0;
  std::vector<float> raw_;  // the logits as they came, where log-probabilities are asked for
  std::vector<TokenLogprob> logprobs_;
};

}  // namespace millrace
