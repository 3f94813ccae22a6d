// A request on its way: what is known of it between two steps.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "constrain/grammar.h"
#include "engine.h"
#include "format/vocabulary.h"
#include "sample/release.h"
#include "sample/sampler.h"

namespace millrace {

struct Live {
  // `stop_tokens` outlive it.
  Live(Request taken, const std::vector<int32_t>& stop_tokens, uint64_t now_us);

  // One more token of the answer: it is counted, and what may be told now is added to `released`. How it ends the answer, if it does.
  std::optional<Finish> take(int32_t token, const Vocabulary& vocabulary, Released& released);
  // The tokens that the request brought, likewise, up to one that ends the answer.
  std::optional<Finish> take_up(const Vocabulary& vocabulary, Released& released);
  // An event that tells the first of these tokens, which go out of `now`: as many as one may have, none of them brought beside sampled ones.
  Event release(Released& now);

  // Tokens that the request came with: its prompt's, and its answer's first ones.
  int given() const { return static_cast<int>(request.prompt.size() + request.continued.size()); }

  Request request;
  std::vector<int32_t> tokens;  // those it came with, then the sampled ones
  std::unique_ptr<Constraint> constraint;  // none: any text
  Sampler sampler;
  Releaser releaser;
  std::vector<TokenLogprob> logprobs;  // of tokens sampled and not yet released
  uint32_t seq = 0;       // tokens of the answer, brought or sampled
  uint32_t released = 0;  // of these, told to the listener
  int slot = -1;
  bool is_begun = false;  // a step has had a row of it since it got its slot
  int settled = 0;        // of its positions, those whose steps are finished
  int cached = 0;         // of what it came with, in memory when it got its slot
  int place = 0;          // last told; 0: none
  uint64_t submitted_us, started_us = 0, first_us = 0, last_us = 0;
};

}  // namespace millrace
