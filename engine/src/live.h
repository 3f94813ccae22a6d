// A request on its way: what is known of it between two steps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "constrain/grammar.h"
#include "engine.h"
#include "sample/release.h"
#include "sample/sampler.h"

namespace millrace {

struct Live {
  // `stop_tokens` outlive it.
  Live(Request taken, const std::vector<int32_t>& stop_tokens, uint64_t now_us)
      : request(std::move(taken)), tokens(request.prompt), sampler(request.sampling, request.prompt), releaser(request.stops), submitted_us(now_us) {
    if (request.grammar != nullptr) {
      constraint = request.grammar->begin();
      sampler.allow(&constraint->mask());
    }
    if (!request.ignores_end) sampler.bar(stop_tokens, request.tokens_min);
  }

  // The event that tells these tokens.
  Event release(Released now) {
    released += static_cast<uint32_t>(now.ids.size());
    const auto end = logprobs.begin() + static_cast<std::ptrdiff_t>(now.ids.size() * sampler.logprobs().size());
    Event event{.request = request.id, .seq = released, .kind = EventKind::tokens, .ids = std::move(now.ids), .text = std::move(now.text),
                .logprobs = {logprobs.begin(), end}};
    logprobs.erase(logprobs.begin(), end);
    return event;
  }

  Request request;
  std::vector<int32_t> tokens;  // the prompt's, then the sampled ones
  std::unique_ptr<Constraint> constraint;  // none: any text
  Sampler sampler;
  Releaser releaser;
  std::vector<TokenLogprob> logprobs;  // of tokens sampled and not yet released
  uint32_t seq = 0;       // tokens sampled
  uint32_t released = 0;  // of these, told to the listener
  int slot = -1;
  int cached = 0;         // of the prompt, in memory when it got its slot
  int place = 0;          // last told; 0: none
  uint64_t submitted_us, started_us = 0, first_us = 0, last_us = 0;
};

}  // namespace millrace
