// How long a step truly takes on a 70B model with FP8 weights on two H200s, as arithmetic from what was measured on such machines: 4.3 TB/s
// of memory each, some 1.1 PFLOP/s of FP8 each in large products, 300 TFLOP/s in attention, 160 all-reduces a step. The fitted model has
// none of these terms: the larger of memory and arithmetic counts, products come in tiles of 64 tokens, attention over a prompt grows with
// its square. On top come noise, stalls, and a slower machine from half-time on.
#pragma once

#include <span>

#include "random.h"
#include "schedule/row.h"

namespace millrace::bench {

struct Disturbance {
  double noise = 0.08;           // deviation of the logarithm
  double stalls_per_s = 0.5;
  double stall_us = 20'000;
  double slowdown = 1.2;
  int64_t slow_from_us = 0;
};

constexpr int kv_tokens_max = 600'000;  // 197 GB of KV memory at 328 KB a token

// Undisturbed.
inline double step_us(std::span<const Row> rows) {
  double tokens = 0, samples = 0, context = 0, pairs = 0;
  for (const Row& row : rows) {
    tokens += row.count;
    samples += row.samples;
    context += row.first + row.count;
    if (row.count > 1) pairs += row.count * (row.first + 0.5 * row.count);
  }
  const double memory_us = 7'600 + 0.038 * context;
  const double arithmetic_us = 63.6 * 64 * std::ceil(tokens / 64) + 0.0044 * pairs;
  const double exchange_us = 160 * 3 + 8.7 * tokens;
  return std::fmax(memory_us, arithmetic_us) + exchange_us + 400 + 3 * samples;
}

inline double disturbed_us(double us, int64_t now_us, const Disturbance& disturbance, Random& random) {
  if (now_us >= disturbance.slow_from_us) us *= disturbance.slowdown;
  us *= std::exp(disturbance.noise * random.normal());
  return us + (random.uniform() < us * disturbance.stalls_per_s / 1e6 ? disturbance.stall_us : 0);
}

}  // namespace millrace::bench
