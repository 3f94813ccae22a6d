#include "misses.h"

#include <algorithm>

namespace millrace {

void Misses::step_took(double expected_us, double measured_us, double prefill_us, double mapping_us) {
  delays_.prefill_us += prefill_us;
  delays_.overrun_us += std::max(0.0, measured_us - expected_us);
  delays_.mapping_us += mapping_us;
}

void Misses::count(const Delays& since, double queued_us, double held_us, double own_prefill_us) {
  const std::array<double, miss_causes> took = {queued_us, delays_.prefill_us - since.prefill_us - own_prefill_us,
                                                delays_.overrun_us - since.overrun_us, delays_.mapping_us - since.mapping_us, held_us};
  // Where nothing stands out, steps are simply longer than the pace that was promised.
  const auto longest = std::max_element(took.begin(), took.end());
  const auto cause = *longest > 0 ? longest - took.begin() : static_cast<std::ptrdiff_t>(MissCause::step_time);
  counts_[static_cast<size_t>(cause)]++;
}

}  // namespace millrace
