#pragma once

#include <cstdint>

namespace millrace {

// One sequence's part of a step: positions first to first + count - 1, of which the last `samples` yield logits.
struct Row {
  uint32_t request = 0;
  int slot = 0;
  int first = 0;
  int count = 0;
  int samples = 0;
  bool is_prompt = false;  // of what the sequence knew when it got its slot
};

}  // namespace millrace
