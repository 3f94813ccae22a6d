#include "schedule.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <utility>

namespace millrace {
namespace {

constexpr int unfitted_promises_max = 4;             // until the model has seen enough to promise more
constexpr double queue_headroom = 0.1;               // of the room, left to those who wait already
constexpr double share_headroom = 0.1;               // left to tenants that had less than their share
constexpr int64_t retry_us_min = 50'000, retry_us_max = 60'000'000;
constexpr int64_t unfitted_retry_us = 250'000;
constexpr int64_t no_due_us = int64_t{1} << 60;      // later than all
constexpr int behind_itl_max = 8;                    // a stream that is further behind is paced anew
constexpr double release_memory_us = 10e6;
constexpr int renewals_max = 10;
// Of slots and pages, what a class leaves to those with tighter deadlines.
constexpr std::array<double, service_classes> reserved = {0, 0.06, 0.2};

}  // namespace

Schedule::Schedule(const ScheduleLimits& limits, TakeSlot take_slot, LeaveSlot leave_slot)
    : limits_(limits), take_slot_(std::move(take_slot)), leave_slot_(std::move(leave_slot)) {}

bool Schedule::fits_ever(int prompt_tokens, int tokens_max) const { return limits_.page_need.of(prompt_tokens + tokens_max) <= limits_.pages_max; }

Schedule::Turn Schedule::turn_of(int index) const {
  const Sequence& sequence = sequences_[index];
  return {!sequence.is_promised, sequence.due_us, index};
}

int Schedule::new_sequence(const Submission& submission, int64_t now_us) {
  if (unused_.empty()) {
    unused_.push_back(static_cast<int>(sequences_.size()));
    sequences_.emplace_back();
  }
  const int index = unused_.back();
  unused_.pop_back();
  sequences_[index] = {.asked = submission, .known = submission.prompt_tokens, .pages = limits_.page_need.of(submission.prompt_tokens + submission.tokens_max),
                       .submitted_us = now_us, .due_us = now_us + submission.deadlines.ttft_us, .since = misses_.delays()};
  const bool is_new = by_request_.emplace(submission.request, index).second;
  assert(is_new);
  waiting_of_[static_cast<size_t>(submission.service)]++;
  (void)is_new;
  return index;
}

double Schedule::work_us(const Submission& submission) const {
  const StepCosts costs = time_.costs();
  const double decode_us = costs.row_us + costs.token_us + costs.sample_us + costs.context_us * submission.prompt_tokens;
  return 1 + prefill_work_us(time_, 0, submission.prompt_tokens) + lengths_.mean(submission.tokens_max) * decode_us;
}

Newcomer Schedule::newcomer(const Submission& submission, int64_t due_us) const {
  return {due_us, submission.deadlines.itl_us, submission.prompt_tokens,
          submission.prompt_tokens + static_cast<int>(lengths_.mean(submission.tokens_max)), limits_.page_need.of(submission.prompt_tokens + submission.tokens_max),
          margins_[static_cast<size_t>(submission.service)].value()};
}

// What is free for a class. Each class and the looser ones together leave something to the tighter ones.
Schedule::Room Schedule::room_of(ServiceClass service) const {
  Room room{limits_.slots_max, limits_.pages_max + pages_shared_}, taken{0, -pages_shared_};
  for (int which = service_classes; which-- > 0;) {
    const auto each = static_cast<size_t>(which);
    taken.slots += taken_[each].slots;
    taken.pages += taken_[each].pages;
    if (which > static_cast<int>(service)) continue;
    // Rounded up, so that a small machine is not all reserve.
    room.slots = std::min(room.slots, static_cast<int>(std::ceil((1 - reserved[each]) * limits_.slots_max)) - taken.slots);
    room.pages = std::min(room.pages, static_cast<int>(std::ceil((1 - reserved[each]) * limits_.pages_max)) - taken.pages);
  }
  return room;
}

Commitments Schedule::commitments(ServiceClass service, int64_t now_us) const {
  Commitments made;
  made.free_at_us = std::max(now_us, step_ends_us_);
  const auto owe = [&](const std::set<Turn>& turns) {
    for (const auto& [is_free, due_us, index] : turns) {
      if (is_free) break;
      const Sequence& sequence = sequences_[index];
      made.owed.push_back({due_us, prefill_work_us(time_, sequence.computed, sequence.known), sequence.slot < 0 ? sequence.pages : 0,
                           margins_[static_cast<size_t>(sequence.asked.service)].value()});
    }
  };
  owe(prefilling_);
  const auto middle = static_cast<std::ptrdiff_t>(made.owed.size());
  owe(waiting_);
  std::inplace_merge(made.owed.begin(), made.owed.begin() + middle, made.owed.end(), [](const Owed& a, const Owed& b) { return a.due_us < b.due_us; });
  made.streams = streams_promised_;
  made.rows_per_us = rows_per_us_;
  made.context_per_us = context_per_us_;
  made.itl_us_min = itl_us_min_;
  const Room room = room_of(service);
  made.slots_free = room.slots;
  made.pages_free = room.pages;
  const double faded = std::exp(-static_cast<double>(now_us - released_us_) / release_memory_us);
  made.slots_released_per_us = slots_released_ * faded / release_memory_us;
  made.pages_released_per_us = pages_released_ * faded / release_memory_us;
  made.queued = queue_.count();
  made.queued_work_us = queue_.work_us();
  return made;
}

Decision Schedule::submit(const Submission& submission, int64_t now_us) {
  const Deadlines& asked = submission.deadlines;
  if (!fits_ever(submission.prompt_tokens, submission.tokens_max)) return {.verdict = Verdict::refused};
  const bool has_place = waiting_count(submission.service) < limits_.waiting_max;
  double late_us = 0, queue_us = 0;
  if (!limits_.admits_all) {
    Commitments made = commitments(submission.service, now_us);
    const bool others_wait = !queue_.empty() || (!prefilling_.empty() && std::get<0>(*prefilling_.rbegin()));
    made.headroom = (others_wait ? queue_headroom : 0) + (shares_.is_over(submission) ? share_headroom : 0);
    late_us = time_.is_fitted()                          ? lateness_us(newcomer(submission, now_us + asked.ttft_us), made, time_, limits_.step_us_max)
              : streams_promised_ < unfitted_promises_max && made.slots_free > 0 && queue_.empty() ? 0
                                                                                   : static_cast<double>(unfitted_retry_us);
    queue_us = queue_.work_us() / std::max(0.1, prefill_share(made, time_, limits_.step_us_max));
    // Who can wait does not overtake those who do.
    if (asked.wait_us_max > 0 && !queue_.empty() && late_us == 0) late_us = 1;
  }
  if (late_us == 0 && has_place) {
    promise(new_sequence(submission, now_us), now_us + asked.ttft_us);
    shares_.charge(submission, work_us(submission), now_us);
    return {.verdict = Verdict::accepted, .ttft_us = asked.ttft_us, .itl_us = asked.itl_us};
  }
  const auto wait_us = static_cast<int64_t>(late_us + queue_us);
  if (has_place && wait_us <= asked.wait_us_max && asked.wait_us_max > 0) {
    const int index = new_sequence(submission, now_us);
    sequences_[index].is_queued = true;
    queue_.push(index, submission, work_us(submission));
    return {.verdict = Verdict::queued, .wait_us = wait_us};
  }
  return {.verdict = Verdict::refused, .retry_after_us = std::clamp(wait_us, retry_us_min, retry_us_max)};
}

void Schedule::promise(int index, int64_t due_us) {
  Sequence& sequence = sequences_[index];
  sequence.is_promised = true;
  sequence.due_us = due_us;
  waiting_.insert(turn_of(index));
  const int64_t itl_us = sequence.asked.deadlines.itl_us;
  streams_promised_++;
  rows_per_us_ += rows_per_us(sequence.asked.deadlines.itl_us);
  context_per_us_ += newcomer(sequence.asked, 0).tokens * rows_per_us(sequence.asked.deadlines.itl_us);
  itl_us_min_ = itl_us_min_ == 0 ? itl_us : std::min(itl_us_min_, itl_us);
}

int Schedule::remove(uint32_t request, bool is_ended, int64_t now_us) {
  const auto found = by_request_.find(request);
  if (found == by_request_.end()) return -1;
  const int index = found->second;
  by_request_.erase(found);
  unused_.push_back(index);
  Sequence& sequence = sequences_[index];
  if (is_ended) lengths_.observe(sequence.sampled);
  if (sequence.is_parked) return -1;
  if (sequence.slot < 0) waiting_of_[static_cast<size_t>(sequence.asked.service)]--;
  if (sequence.is_queued) {
    queue_.erase(index);
    return -1;
  }
  if (sequence.slot < 0) {
    waiting_.erase(turn_of(index));
    return -1;
  }
  leave(index);
  const double faded = std::exp(-static_cast<double>(now_us - released_us_) / release_memory_us);
  slots_released_ = slots_released_ * faded + 1;
  pages_released_ = pages_released_ * faded + sequence.pages;
  released_us_ = now_us;
  return sequence.slot;
}

// Out of the slot that it is in.
void Schedule::leave(int index) {
  const Sequence& sequence = sequences_[index];
  Room& taken = room_taken_by(sequence);
  taken.slots--;
  taken.pages -= sequence.pages;
  if (!sequence.is_decoding) prefilling_.erase(turn_of(index));
  sequences_[running_.back()].place = sequence.place;
  running_[sequence.place] = running_.back();
  running_.pop_back();
}

std::vector<Row> Schedule::plan(int64_t now_us, std::vector<uint32_t>& started) {
  renew_late(now_us);
  count_promised();
  admit_queued(now_us);
  start_waiting(now_us, started);
  return compose(now_us);
}

// Answers that ended since the last step owe nothing any more, and contexts grew.
void Schedule::count_promised() {
  streams_promised_ = 0;
  rows_per_us_ = context_per_us_ = 0;
  itl_us_min_ = 0;
  const auto count_in = [this](const Sequence& sequence) {
    const double pace = rows_per_us(sequence.asked.deadlines.itl_us);
    rows_per_us_ += pace;
    context_per_us_ += sequence.known * pace;
    if (!sequence.is_promised) return;
    const int64_t itl_us = sequence.asked.deadlines.itl_us;
    streams_promised_++;
    itl_us_min_ = itl_us_min_ == 0 ? itl_us : std::min(itl_us_min_, itl_us);
  };
  for (const Turn& turn : waiting_) count_in(sequences_[std::get<2>(turn)]);
  for (const int index : running_) count_in(sequences_[index]);
}

// A first token that is late is promised anew, for twice as long each time: with its old deadline it would be served before all others and
// make them late too, without any it would starve. Those from the queue who were promised nothing get their promise so.
void Schedule::renew_late(int64_t now_us) {
  std::vector<int> late;
  for (std::set<Turn>* turns : {&prefilling_, &waiting_}) {
    late.clear();
    for (const bool is_promised : {true, false})
      for (auto turn = turns->lower_bound({!is_promised, 0, 0}); turn != turns->end() && std::get<0>(*turn) == !is_promised && std::get<1>(*turn) < now_us;) {
        late.push_back(std::get<2>(*turn));
        turn = turns->erase(turn);
      }
    for (const int index : late) {
      Sequence& sequence = sequences_[index];
      if (sequence.is_promised && sequence.renewals == 0) margins_[static_cast<size_t>(sequence.asked.service)].observe(true);
      if (limits_.admits_all) {
        // With everything promised to everybody, new promises to the late would break all the others: they come last, in order.
        sequence.is_promised = false;
        sequence.due_us += no_due_us;
        turns->insert(turn_of(index));
        continue;
      }
      sequence.is_promised = true;
      sequence.renewals = std::min(sequence.renewals + 1, renewals_max);
      sequence.due_us = now_us + (sequence.asked.deadlines.ttft_us << sequence.renewals);
      turns->insert(turn_of(index));
    }
  }
}

void Schedule::admit_queued(int64_t now_us) {
  while (!queue_.empty() && admit(queue_.front(), now_us)) {
  }
}

// Takes the head of the queue out if it can be promised its deadlines, now or as of its submission, or if serving it breaks nobody else's.
bool Schedule::admit(int index, int64_t now_us) {
  Sequence& sequence = sequences_[index];
  const Commitments made = commitments(sequence.asked.service, now_us);
  int slots_wanted = 1 + static_cast<int>(waiting_.size()), pages_wanted = sequence.pages;
  for (const Turn& turn : waiting_) pages_wanted += sequences_[std::get<2>(turn)].pages;
  const bool is_alone = running_.empty() && waiting_.empty();  // then even one that is larger than its class may be
  if (!is_alone && (made.slots_free < slots_wanted || made.pages_free < pages_wanted)) return false;
  const auto holds = [&](int64_t due_us) {
    return time_.is_fitted() && lateness_us(newcomer(sequence.asked, due_us), made, time_, limits_.step_us_max) == 0;
  };
  const int64_t ttft_us = sequence.asked.deadlines.ttft_us, asked_us = sequence.submitted_us + ttft_us;
  const int64_t due_us = asked_us > now_us && holds(asked_us) ? asked_us : holds(now_us + ttft_us) ? now_us + ttft_us : no_due_us;
  if (due_us == no_due_us && time_.is_fitted() && streams_promised_ > 0 && !holds(no_due_us)) return false;
  queue_.pop();
  sequence.is_queued = false;
  shares_.charge(sequence.asked, work_us(sequence.asked), now_us);
  promise(index, due_us);
  if (due_us != no_due_us) return true;
  waiting_.erase(turn_of(index));
  sequence.is_promised = false;
  sequence.due_us = now_us + ttft_us;
  waiting_.insert(turn_of(index));
  streams_promised_--;
  return true;
}

// Whether the prompts in work that come before are a step's already: one more would hold a slot and pages, and be no faster.
bool Schedule::fills_step_before(const Turn& turn) const {
  int tokens = 0;
  for (auto each = prefilling_.begin(); each != prefilling_.end() && *each < turn; ++each)
    if (const Sequence& sequence = sequences_[std::get<2>(*each)]; !sequence.is_held) tokens += sequence.known - sequence.computed;
  return tokens >= limits_.step_tokens_max;
}

// In order of deadlines; a class that has all it may have is passed, but nobody is who waits for room in the whole.
void Schedule::start_waiting(int64_t now_us, std::vector<uint32_t>& started) {
  for (auto turn = waiting_.begin(); turn != waiting_.end();) {
    if (fills_step_before(*turn)) break;
    const int index = std::get<2>(*turn);
    const Sequence& sequence = sequences_[index];
    const Room all = room_of(ServiceClass::voice), room = room_of(sequence.asked.service);
    if (all.slots < 1 || all.pages < sequence.pages) break;
    // One that is larger than its class may be alone waits until it is alone.
    if ((room.slots < 1 || room.pages < sequence.pages) && !running_.empty()) {
      ++turn;
      continue;
    }
    if (!make_room(sequence.pages, now_us)) break;
    const Taken taken = take_slot_(sequence.asked.request, sequence.pages);
    if (taken.slot < 0) break;
    turn = waiting_.erase(turn);
    start(index, taken, now_us);
    started.push_back(sequence.asked.request);
  }
}

void Schedule::start(int index, const Taken& got, int64_t now_us) {
  Sequence& sequence = sequences_[index];
  sequence.slot = got.slot;
  sequence.computed = sequence.cached = got.cached;
  sequence.started_us = now_us;
  sequence.place = running_count();
  running_.push_back(index);
  prefilling_.insert(turn_of(index));
  Room& taken = room_taken_by(sequence);
  taken.slots++;
  taken.pages += sequence.pages;
  waiting_of_[static_cast<size_t>(sequence.asked.service)]--;
}

void Schedule::measured(std::span<const Row> rows, int64_t begun_us, int64_t ended_us, int64_t mapping_us) {
  StepLoad load, prefill;
  for (const Row& row : rows) {
    load.add(row.first, row.count, row.samples);
    if (row.is_prompt) prefill.add(row.first, row.count, row.samples);
  }
  const auto took_us = static_cast<double>(ended_us - begun_us);
  const double expected_us = time_.is_fitted() ? time_.mean_us(load) : took_us;
  misses_.step_took(expected_us, took_us, time_.is_fitted() ? time_.mean_us(prefill) : took_us, static_cast<double>(mapping_us));
  time_.observe(load, took_us);
}

void Schedule::settle(const Row& row, int sampled, int64_t now_us) {
  Sequence& sequence = sequences_[by_request_.at(row.request)];
  sequence.steps--;
  if (sampled == 0) return;
  const Deadlines& asked = sequence.asked.deadlines;
  const bool is_first = sequence.sampled == 0;
  const bool is_caught_up = std::exchange(sequence.is_caught_up, false);
  sequence.pending -= sampled;
  if (is_first && sequence.is_promised && sequence.renewals == 0) margins_[static_cast<size_t>(sequence.asked.service)].observe(now_us > sequence.due_us);
  sequence.sampled += sampled;
  if (now_us > (is_first ? sequence.submitted_us + asked.ttft_us : sequence.due_us)) {
    const double queued_us = is_first ? static_cast<double>(sequence.started_us - sequence.submitted_us) : 0;
    const double own_us = is_first ? prefill_work_us(time_, sequence.cached, sequence.asked.prompt_tokens) : 0;
    misses_.count(sequence.since, queued_us, static_cast<double>(sequence.held_us), own_us);
  }
  sequence.since = misses_.delays();
  sequence.held_us = 0;
  sequence.last_us = now_us;
  // Early tokens bank credit; what was never promised, or is hopelessly behind, is paced from now on.
  sequence.due_us += asked.itl_us;
  const bool is_lost = now_us > sequence.due_us + behind_itl_max * asked.itl_us;
  if ((is_caught_up && (!sequence.is_promised || sequence.renewals > 0)) || is_lost) sequence.due_us = now_us + asked.itl_us;
}

std::vector<uint32_t> Schedule::waiting() const {
  std::vector<uint32_t> requests;
  for (const Turn& turn : waiting_) requests.push_back(sequences_[std::get<2>(turn)].asked.request);
  queue_.visit([&](int index) { requests.push_back(sequences_[index].asked.request); });
  return requests;
}

}  // namespace millrace
