// How long things took, in buckets that are at most a 64th of their value wide: quantiles of millions of times in a few kilobytes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace relay {

class Histogram {
 public:
  // A negative time is one of no length: two processes' readings of one clock may cross by less than a microsecond.
  void add(int64_t us) {
    us = std::max<int64_t>(us, 0);
    buckets_[bucket_of(static_cast<uint64_t>(us))]++;
    count_++;
    max_us_ = std::max(max_us_, us);
  }

  uint64_t count() const { return count_; }
  double max_ms() const { return static_cast<double>(max_us_) / 1e3; }

  // The end of the bucket in which it lies, 0 of nothing. `fraction` is 0 to 1.
  double quantile_ms(double fraction) const {
    const double wanted = fraction * static_cast<double>(count_);
    uint64_t seen = 0;
    for (size_t bucket = 0; bucket < buckets_.size(); bucket++) {
      seen += buckets_[bucket];
      if (seen > 0 && static_cast<double>(seen) >= wanted)
        return static_cast<double>(std::min<uint64_t>(end_of(bucket), static_cast<uint64_t>(max_us_))) / 1e3;
    }
    return 0;
  }

 private:
  static constexpr int sub_bits = 6;  // 64 buckets a power of two
  static constexpr size_t subs = size_t{1} << sub_bits;

  // Below 128 each microsecond has a bucket; above, the leading seven bits choose it.
  static size_t bucket_of(uint64_t us) {
    if (us < 2 * subs) return us;
    const int shift = 63 - __builtin_clzll(us) - sub_bits;
    return (static_cast<size_t>(shift) << sub_bits) + (us >> shift);
  }

  static uint64_t end_of(size_t bucket) {
    if (bucket < 2 * subs) return bucket;
    const size_t shift = (bucket >> sub_bits) - 1;
    return (((bucket & (subs - 1)) + subs + 1) << shift) - 1;
  }

  std::array<uint64_t, subs*(64 - sub_bits + 1)> buckets_{};
  uint64_t count_ = 0;
  int64_t max_us_ = 0;
};

}  // namespace relay
