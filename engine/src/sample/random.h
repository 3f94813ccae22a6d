// Random numbers without state: the draw for a token is a pure function of the request's seed and the token's position, so that an
// answer is the same whatever else ran beside it, and can be taken up again anywhere. Constant expressions, so that device code may call them.
#pragma once

#include <cstdint>

namespace millrace {

// The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
constexpr uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// Uniform in [0, 1).
constexpr double uniform(uint64_t seed, uint64_t position) {
  const uint64_t bits = mix(mix(seed + 0x9e3779b97f4a7c15u) + (position + 1) * 0x9e3779b97f4a7c15u);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace millrace
