// Tokens that came after they were due, and whose fault it was: of what went on since the stream's last token, whatever took longest.
#pragma once

#include <array>
#include <cstdint>

namespace millrace {

enum class MissCause : uint8_t {
  queueing,   // waited for room: a slot, pages, or for what could be promised
  prefill,    // others' prompts were computed meanwhile
  step_time,  // steps took longer than the model said: noise, a stall, a machine that slowed down
  mapping,    // pages of KV memory were mapped
  reader,     // the stream was held for its reader
};
constexpr int miss_causes = 5;

// Running totals of what may hold a stream up. A stream keeps them as they stood at its last token; the difference is what held it up.
struct Delays {
  double prefill_us = 0, overrun_us = 0, mapping_us = 0;
};

class Misses {
 public:
  void step_took(double expected_us, double measured_us, double prefill_us, double mapping_us);
  const Delays& delays() const { return delays_; }

  // A token was late. `own_prefill_us`: of the prompts computed since, the stream's own.
  void count(const Delays& since, double queued_us, double held_us, double own_prefill_us);
  uint64_t of(MissCause cause) const { return counts_[static_cast<int>(cause)]; }

 private:
  Delays delays_;
  std::array<uint64_t, miss_causes> counts_{};
};

}  // namespace millrace
