// What the schedule knows of a request. Deadlines come from outside, by value; here a class is a line of its own in the queue.
#pragma once

#include <cstdint>

#include "engine.h"

namespace millrace {

constexpr int service_classes = 3;

struct Submission {
  uint32_t request = 0;
  int prompt_tokens = 0;
  int tokens_max = 0;
  Deadlines deadlines;
  ServiceClass service = ServiceClass::chat;
  uint32_t tenant = 0;
  double weight = 1;  // the tenant's share inside its class
  bool waits = false;  // a token may be chosen only once the one before it is known
};

}  // namespace millrace
