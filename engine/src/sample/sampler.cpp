#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "constrain/grammar.h"
#include "logprobs.h"
#include "random.h"

namespace millrace {
namespace {

int32_t likeliest(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options, std::span<const int32_t> prompt) : options_(options), prompt_tokens_(static_cast<int>(prompt.size())) {
  if (options_.repetition_penalty != 1)
    for (const int32_t token : prompt) seen_[token].anywhere = true;
}

void Sampler::accept(int32_t token) {
  Seen& seen = seen_[token];
  seen.anywhere = true;
  seen.generated++;
  accepted_++;
}

int32_t Sampler::sample(std::span<float> logits, uint64_t position) {
  if (options_.logprobs < 0) return draw(logits, position);
  raw_.assign(logits.begin(), logits.end());
  const int32_t token = draw(logits, position);
  logprobs_ = logprobs_of(raw_, token, options_.logprobs);
  return token;
}

int32_t Sampler::draw(std::span<float> logits, uint64_t position) {
  for (const TokenBias& each : options_.bias) logits[each.token] += each.bias;
  penalize(logits);
  for (const int32_t token : barred()) logits[token] = -std::numeric_limits<float>::infinity();
  if (mask_ != nullptr) {
    mask_->wait();
    for (size_t token = 0; token < logits.size(); token++)
      if (!mask_->allows(token)) logits[token] = -std::numeric_limits<float>::infinity();
  }
  const int32_t best = likeliest(logits);
  if (options_.temperature <= 0 || options_.top_k == 1) return best;

  choose_candidates(logits, logits[best]);
  double total = 0;
  for (const Candidate& candidate : candidates_) total += candidate.weight;
  double left = uniform(options_.seed, position) * total;
  for (const Candidate& candidate : candidates_) {
    left -= candidate.weight;
    if (left < 0) return candidate.token;
  }
  return candidates_.empty() ? best : candidates_.back().token;
}

void Sampler::penalize(std::span<float> logits) const {
  if (!options_.has_penalties()) return;
  for (const auto& [token, seen] : seen_) {
    float& logit = logits[token];
    if (seen.anywhere) logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    if (seen.generated > 0) logit -= options_.presence_penalty + options_.frequency_penalty * static_cast<float>(seen.generated);
  }
}

void Sampler::choose_candidates(std::span<const float> logits, float highest) {
  const float inverse = 1 / options_.temperature;
  // Beyond 2^-24 of the likeliest a token's weight vanishes in the sum.
  const float logit_floor = highest + std::log(0x1p-24f) * options_.temperature;
  candidates_.clear();
  for (size_t token = 0; token < logits.size(); token++)
    if (logits[token] >= logit_floor)
      candidates_.push_back({static_cast<int32_t>(token), std::exp((logits[token] - highest) * inverse)});

  const auto likelier = [](const Candidate& a, const Candidate& b) { return a.weight > b.weight || (a.weight == b.weight && a.token < b.token); };
  if (options_.top_k > 0 && candidates_.size() > static_cast<size_t>(options_.top_k)) {
    std::nth_element(candidates_.begin(), candidates_.begin() + options_.top_k, candidates_.end(), likelier);
    candidates_.resize(options_.top_k);
  }
  std::sort(candidates_.begin(), candidates_.end(), likelier);
  if (options_.top_p < 1) {
    double total = 0, kept = 0;
    for (const Candidate& candidate : candidates_) total += candidate.weight;
    size_t count = 0;
    while (count < candidates_.size() && (count == 0 || kept < options_.top_p * total)) kept += candidates_[count++].weight;
    candidates_.resize(count);
  }
  while (candidates_.size() > 1 && candidates_.back().weight < options_.min_p) candidates_.pop_back();
}

}  // namespace millrace
