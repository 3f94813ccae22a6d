// Random inputs of tests. Fresh in every run unless MILLRACE_TEST_SEED is set; a test whose statistics need it names its own seed.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "test.h"

namespace millrace::test {

class Random {
 public:
  Random() : Random(seed()) {}
  explicit Random(uint64_t state) : state_(state) {}

  uint64_t next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t value = state_;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
  }
  // Both ends included.
  int between(int low, int high) { return low + static_cast<int>(next() % (static_cast<uint64_t>(high - low) + 1)); }
  bool chance(double probability) { return uniform() < probability; }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  // Of mean 0 and deviation 1 (Box and Muller).
  float normal() { return static_cast<float>(std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform())); }

  std::vector<float> normals(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal();
    return values;
  }
  std::vector<int32_t> tokens(int count, int vocabulary) {
    std::vector<int32_t> ids(static_cast<size_t>(count));
    for (int32_t& id : ids) id = between(0, vocabulary - 1);
    return ids;
  }

 private:
  uint64_t state_;
};

}  // namespace millrace::test
