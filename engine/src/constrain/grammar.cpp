#include "grammar.h"

#include <algorithm>

#include "base/attempt.h"
#include "base/text.h"

namespace millrace {

void Constraint::fill() noexcept {
  const Status status = attempt([this] { fill_bits(mask_.bits()); });
  if (!status.ok()) {
    std::fill_n(mask_.bits(), mask_.words(), ~uint32_t{0});
    failure_ = status;
  }
  mask_.end();
}

Status Constraint::accept(int32_t token) {
  if (!failure_.ok()) return failure_;
  bool is_taken = false;
  if (Status status = attempt([&] { is_taken = take(token); }); !status.ok()) return status;
  return is_taken ? Status() : Status::error(text("token ", token, " does not fit the format that the answer must have"));
}

}  // namespace millrace
