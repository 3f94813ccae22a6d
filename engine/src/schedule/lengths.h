// How long answers are, learnt from those that ended: what a running one has left is never known, only what others had.
#pragma once

#include <array>
#include <cstdint>

namespace millrace {

class AnswerLengths {
 public:
  void observe(int tokens);
  // Tokens an answer that has `sampled` already is expected to have yet, at most `tokens_max` in all. Before any was seen: all of them.
  double left(int sampled, int tokens_max) const;
  double mean(int tokens_max) const { return left(0, tokens_max); }

 private:
  // Bucket b has answers of [2^(b/2), 2^((b+1)/2)) tokens; old ones fade.
  static constexpr int buckets = 48;
  static int bucket_of(int tokens);
  std::array<double, buckets> counts_{}, tokens_{};
};

}  // namespace millrace
