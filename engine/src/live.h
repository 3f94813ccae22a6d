// A request on its way: what is known of it between two steps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine.h"
#include "sample/release.h"
#include "sample/sampler.h"

namespace millrace {

struct Live {
  explicit Live(Request taken, uint64_t now_us)
      : request(std::move(taken)), tokens(request.prompt), sampler(request.sampling, request.prompt), releaser(request.stops), submitted_us(now_us) {}

  Request request;
  std::vector<int32_t> tokens;  // the prompt's, then the sampled ones
  Sampler sampler;
  Releaser releaser;
  uint32_t seq = 0;       // tokens sampled
  uint32_t released = 0;  // of these, told to the listener
  int slot = -1;
  int place = 0;          // last told; 0: none
  uint64_t submitted_us, started_us = 0, first_us = 0, last_us = 0;
};

}  // namespace millrace
