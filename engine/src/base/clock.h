#pragma once

#include <chrono>
#include <cstdint>

namespace millrace {

// Microseconds of one monotonic clock.
inline uint64_t now_us() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(since).count());
}

}  // namespace millrace
