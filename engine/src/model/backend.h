// What carries a step out: a CPU today, a GPU behind the same face. It owns the weights in its own layout and the KV memory's insides.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "../sample/sampler.h"
#include "../schedule/schedule.h"

namespace millrace {

// A step's work. Tokens of all rows follow one another in the order of the rows.
struct Plan {
  std::vector<Row> rows;
  std::vector<int32_t> tokens;     // [sum of the rows' counts]
  std::vector<Sampler*> samplers;  // [sum of the rows' samples]; none: only logits are wanted
  float* logits = nullptr;         // if not null, receives [samples][vocabulary]
};

class Backend {
 public:
  virtual ~Backend() = default;
  // Computes the rows, whose KV pages are mapped, and returns a sampled token for each of the plan's samplers.
  virtual std::vector<int32_t> run(const Plan& plan) = 0;
};

}  // namespace millrace
