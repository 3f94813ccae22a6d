// What carries a step out: a CPU today, a GPU behind the same face. It owns the weights in its own layout and the KV memory's insides.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "../sample/sampler.h"
#include "../schedule/schedule.h"

namespace millrace {

constexpr int32_t sampled_before = -1;

// A step's work. Tokens of all rows follow one another in the order of the rows.
struct Plan {
  // A row whose sequence begins, in this slot, with what was computed before, of other requests or of itself before it was parked, and whose
  // penalties count that.
  struct Begun {
    int slot;
    std::vector<int32_t> tokens;  // all before the row's first
  };
  std::vector<Row> rows;
  std::vector<Begun> begun;
  std::vector<int32_t> tokens;     // [sum of the rows' counts]; sampled_before: what the row's slot sampled last
  // Of one token to be sampled; `pending` others of its sequence are sampled by steps that are not finished.
  struct Sampling {
    Sampler* sampler;
    int pending;
  };
  std::vector<Sampling> samplers;  // [sum of the rows' samples]; none: only logits are wanted
  float* logits = nullptr;         // if not null, receives [samples][vocabulary]
};

// What one of the plan's samplers yielded.
struct SampledToken {
  int32_t token = 0;
  std::vector<TokenLogprob> logprobs;  // itself first; none where the sampler's options ask for none
};

class Backend {
 public:
  virtual ~Backend() = default;
  // Begins to compute the rows, whose KV pages are mapped. A plan's samplers must live until it is finished. Where it throws, nothing is begun.
  virtual void begin(const Plan& plan) = 0;
  // Awaits the plan that was begun first, of those not yet finished. Where it throws, that one counts as finished too.
  virtual std::vector<SampledToken> finish() = 0;
  // Whether nothing goes on that finish would wait for: always so where it computes itself.
  virtual bool is_done() const { return true; }
  // How many plans may be begun before the one in front of them is finished: the device then never waits for the host. A row of such a plan has
  // sampled_before in place of the token that the one in front of it samples.
  virtual int steps_ahead() const = 0;
  // Called while there is nothing to do: gets one thing more ready that a later step would have to wait for. False: all is.
  virtual bool warm_up() { return false; }

  std::vector<SampledToken> run(const Plan& plan) {
    begin(plan);
    return finish();
  }
};

}  // namespace millrace
