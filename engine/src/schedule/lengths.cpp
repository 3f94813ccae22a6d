#include "lengths.h"

#include <algorithm>
#include <cmath>

namespace millrace {
namespace {

constexpr double fading = 0.999;

}  // namespace

int AnswerLengths::bucket_of(int tokens) { return std::min(buckets - 1, static_cast<int>(2 * std::log2(std::max(tokens, 1)))); }

void AnswerLengths::observe(int tokens) {
  for (int i = 0; i < buckets; i++) {
    counts_[i] *= fading;
    tokens_[i] *= fading;
  }
  counts_[bucket_of(tokens)] += 1;
  tokens_[bucket_of(tokens)] += tokens;
}

double AnswerLengths::left(int sampled, int tokens_max) const {
  const double bound = std::max(0, tokens_max - sampled);
  double count = 0, tokens = 0;
  for (int i = sampled == 0 ? 0 : bucket_of(sampled) + 1; i < buckets; i++) {
    count += counts_[i];
    tokens += tokens_[i];
  }
  // Longer than any that was seen: as much again as it has had.
  if (count < 0.5) return sampled == 0 ? bound : std::min(bound, static_cast<double>(sampled));
  return std::clamp(tokens / count - sampled, 1.0, std::max(1.0, bound));
}

}  // namespace millrace
