#include "schedule.h"

#include <algorithm>

namespace millrace {

Schedule::Schedule(const ScheduleLimits& limits, std::function<int(int pages)> take_slot) : limits_(limits), take_slot_(std::move(take_slot)) {}

int Schedule::pages_for(int tokens) const { return (tokens + limits_.page_tokens - 1) / limits_.page_tokens; }

bool Schedule::fits_ever(int prompt_tokens, int tokens_max) const { return pages_for(prompt_tokens + tokens_max) <= limits_.pages_max; }

bool Schedule::add(uint32_t request, int prompt_tokens, int tokens_max) {
  if (waiting_count() >= limits_.waiting_max || !fits_ever(prompt_tokens, tokens_max)) return false;
  waiting_.push_back({request, prompt_tokens, pages_for(prompt_tokens + tokens_max)});
  return true;
}

int Schedule::remove(uint32_t request) {
  const auto queued = std::find_if(waiting_.begin(), waiting_.end(), [&](const Waiting& w) { return w.request == request; });
  if (queued != waiting_.end()) {
    waiting_.erase(queued);
    return -1;
  }
  const auto found = std::find_if(running_.begin(), running_.end(), [&](const Sequence& s) { return s.request == request; });
  if (found == running_.end()) return -1;
  const int slot = found->slot;
  pages_promised_ -= found->pages;
  running_.erase(found);
  return slot;
}

std::vector<Row> Schedule::plan(std::vector<uint32_t>& admitted) {
  while (!waiting_.empty() && pages_promised_ + waiting_.front().pages <= limits_.pages_max) {
    const int slot = take_slot_(waiting_.front().pages);
    if (slot < 0) break;
    const Waiting next = waiting_.front();
    waiting_.pop_front();
    pages_promised_ += next.pages;
    running_.push_back({next.request, slot, next.prompt_tokens, 0, next.pages});
    admitted.push_back(next.request);
  }

  std::vector<Row> rows;
  for (const Sequence& sequence : running_)
    if (sequence.known - sequence.computed == 1) rows.push_back({sequence.request, sequence.slot, sequence.computed, 1, 1});
  int room = rows.empty() ? limits_.step_tokens_max : limits_.mixed_tokens_max;
  for (const Sequence& sequence : running_) {
    const int left = sequence.known - sequence.computed;
    if (left <= 1 || room == 0) continue;
    const int count = std::min(left, room);
    rows.push_back({sequence.request, sequence.slot, sequence.computed, count, count == left ? 1 : 0});
    room -= count;
  }
  return rows;
}

void Schedule::settle(const Row& row, int sampled) {
  for (Sequence& sequence : running_) {
    if (sequence.request != row.request) continue;
    sequence.computed += row.count;
    sequence.known += sampled;
    return;
  }
}

std::vector<uint32_t> Schedule::waiting() const {
  std::vector<uint32_t> requests;
  for (const Waiting& waiting : waiting_) requests.push_back(waiting.request);
  return requests;
}

}  // namespace millrace
