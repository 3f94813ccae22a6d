// What can be promised to a newcomer without breaking a promise already given. Two things must hold from now on: every first token that is
// owed comes in time when prompts are computed in order of their deadlines, in the share of time that decoding leaves; and decoding, at
// the pace of its streams and with the newcomer among them, leaves such a share. Answer lengths are not known: a stream is counted as long
// as it runs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "classes.h"
#include "step_time.h"

namespace millrace {

// A first token that is owed, and what is left to do until then.
struct Owed {
  int64_t due_us = 0;
  double work_us = 0;  // of its prompt
  int pages = 0;       // that it waits for, with a slot; 0: it has both
  double margin = 1;   // on the time that the work before it takes
};

// What was promised already, and what is free.
struct Commitments {
  int64_t free_at_us = 0;          // the step under way is expected to end then
  std::vector<Owed> owed;          // in order of due_us
  int streams = 0;                 // promised, first tokens owed included
  double rows_per_us = 0;          // that decoding all of them takes, at pace
  double context_per_us = 0;
  int64_t itl_us_min = 0;          // of any of them; 0: nobody is promised anything
  int slots_free = 0, pages_free = 0;  // before those are served who wait
  double slots_released_per_us = 0, pages_released_per_us = 0;  // by answers that are expected to end
  int queued = 0;
  double queued_work_us = 0;
  double headroom = 0;             // the share of the room that is not for this newcomer
};

// A prompt's work in steps that have others in them too: what it adds to them, from position `first` on.
double prefill_work_us(const StepTime& time, int first, int prompt_tokens);

// A stream that is ahead of its due time sits out steps for no longer than this.
constexpr int64_t yield_us_max = 120'000;

// How often decoding a stream is accounted for: ahead of its pace, so that it banks credit, and nearly in every step.
constexpr double decode_every_us_max = 60'000;
inline double rows_per_us(int64_t itl_us) { return 1 / std::min(static_cast<double>(itl_us) / 1.5, decode_every_us_max); }

// The share of time left for prompts: 1 less what decoding takes.
double prefill_share(const Commitments& commitments, const StepTime& time, int64_t step_us_max);

// How much longer than predicted first tokens take, as far as promises must know: grows with each that was late and shrinks with each that
// was not, so that about one in 300 is late whatever it is that the model of step time lacks.
class PromiseMargin {
 public:
  void observe(bool is_late);
  double value() const { return value_; }

 private:
  double value_ = 1.25;
};

// Whether the owed tokens keep their deadlines with this newcomer among them; `due_us` and `itl_us` say what it would be promised.
struct Newcomer {
  int64_t due_us = 0, itl_us = 0;
  int prompt_tokens = 0, tokens = 0;  // tokens: of its whole context, once it decodes
  int pages = 0;
  double margin = 1;
};
// Microseconds by which it would have to be later for all to hold; 0: it holds now.
double lateness_us(const Newcomer& newcomer, const Commitments& commitments, const StepTime& time, int64_t step_us_max);

}  // namespace millrace
