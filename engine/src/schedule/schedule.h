// Who runs next. Pure: no clock, no thread, no I/O, so that a test can play any history through it. Requests wait in order of
// arrival; an admitted one holds a slot and a promise of pages for its whole length, so it can never run out half-way.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

namespace millrace {

// One sequence's part of a step: positions first to first + count - 1, of which the last `samples` yield logits.
struct Row {
  uint32_t request = 0;
  int slot = 0;
  int first = 0;
  int count = 0;
  int samples = 0;
};

struct ScheduleLimits {
  int waiting_max = 256;
  int pages_max = 0;
  int page_tokens = 16;
  int step_tokens_max = 256;   // positions a step while nobody decodes
  int mixed_tokens_max = 64;   // prompt positions a step while somebody does: what a decoding reader waits for at most
};

struct Sequence {
  uint32_t request = 0;
  int slot = -1;
  int known = 0;     // tokens whose ids are known: the prompt's and the sampled ones
  int computed = 0;  // of these, positions whose keys and values are in memory
  int pages = 0;     // promised
};

class Schedule {
 public:
  // take_slot returns an idle slot for a sequence of at most so many pages, or -1.
  Schedule(const ScheduleLimits& limits, std::function<int(int pages)> take_slot);

  // Joins the queue. False: it is full, or the request is larger than the whole pool.
  bool add(uint32_t request, int prompt_tokens, int tokens_max);
  // Leaves, wherever it stands. Returns its slot, or -1 if it had none.
  int remove(uint32_t request);

  // The next step's rows, decodes first; empty when there is nothing to do. Admits from the queue what has room.
  // `admitted` receives the requests that got a slot.
  std::vector<Row> plan(std::vector<uint32_t>& admitted);
  // A planned row was computed; `sampled` new tokens are known.
  void settle(const Row& row, int sampled);

  // The place in the queue of each waiting request is its index here, plus one.
  std::vector<uint32_t> waiting() const;
  int waiting_count() const { return static_cast<int>(waiting_.size()); }
  int running_count() const { return static_cast<int>(running_.size()); }
  bool fits_ever(int prompt_tokens, int tokens_max) const;

 private:
  struct Waiting {
    uint32_t request;
    int prompt_tokens;
    int pages;
  };
  int pages_for(int tokens) const;

  ScheduleLimits limits_;
  std::function<int(int pages)> take_slot_;
  std::deque<Waiting> waiting_;
  std::vector<Sequence> running_;  // in order of admission
  int pages_promised_ = 0;
};

}  // namespace millrace
