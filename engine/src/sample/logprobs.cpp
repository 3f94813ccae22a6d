#include "logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace millrace {
namespace {

float possible(float logit) { return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit; }

}  // namespace

std::vector<TokenLogprob> logprobs_of(std::span<const float> logits, int32_t sampled, int count) {
  std::vector<TokenLogprob> chosen;  // holds logits until their sum is known
  chosen.reserve(static_cast<size_t>(count) + 2);
  chosen.push_back({sampled, possible(logits[sampled])});
  float highest = -std::numeric_limits<float>::infinity();
  for (size_t token = 0; token < logits.size(); token++) {
    const float logit = possible(logits[token]);
    highest = std::max(highest, logit);
    const bool is_full = chosen.size() > static_cast<size_t>(count);
    if (is_full && (count == 0 || !(logit > chosen.back().logprob))) continue;
    const auto place = std::upper_bound(chosen.begin() + 1, chosen.end(), logit, [](float value, const TokenLogprob& each) { return value > each.logprob; });
    chosen.insert(place, {static_cast<int32_t>(token), logit});
    if (is_full) chosen.pop_back();
  }
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(possible(logit)) - highest);
  const double normalizer = highest + std::log(total);
  const bool is_distribution = std::isfinite(normalizer);
  for (TokenLogprob& each : chosen)
    each.logprob = is_distribution ? static_cast<float>(each.logprob - normalizer) : -std::numeric_limits<float>::infinity();
  return chosen;
}

}  // namespace millrace
