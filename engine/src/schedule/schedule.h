// Who runs next, and what may be promised. Pure: no clock, no thread, no I/O; times come as arguments (microseconds of one monotonic clock)
// and a step-time model learns from steps measured by the caller, so that a test can play any history through it.
//
// Steps may be planned ahead: what is planned counts as computed, and its tokens as known, though who they are is not; settle says so, in
// the order of the plans.
//
// A request goes: submitted, answered at once (admission.h), waiting with or without a promise, in a slot with its prompt computed slice by
// slice, decoding, removed. One that has a slot holds pages for its whole length, so it can never run out half-way.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "admission.h"
#include "classes.h"
#include "fairness.h"
#include "lengths.h"
#include "misses.h"
#include "pages.h"
#include "row.h"
#include "step_time.h"
#include "taken.h"

namespace millrace {

struct ScheduleLimits {
  int waiting_max = 256;          // of each class
  int slots_max = 32;
  int pages_max = 0;
  PageNeed page_need;
  int step_tokens_max = 256;      // positions a step
  double prefill_share_min = 0.26;  // of a step's time, for prompts: at 0.26 it takes up to 1.35 times one without
  int tokens_multiple = 1;        // of a prompt's slices with what they are computed beside: a step of one more takes as long as one of the next multiple
  int64_t step_us_max = 100'000;  // aimed at where no promise asks for less: what a newcomer may have to wait for
  bool admits_all = false;        // promises everything to everybody; for comparison
};

struct Sequence {
  Submission asked;
  int slot = -1;             // -1: it waits
  int known = 0;             // the prompt's tokens and the sampled ones, those under way included
  int computed = 0;          // of these, positions whose keys and values are in memory, or will be after the steps planned
  int cached = 0;            // of these, in memory when it got its slot
  int sampled = 0;           // of these, settled
  int pending = 0;           // planned to be sampled, and not settled
  int steps = 0;             // planned with a row of it, and not settled
  int pages = 0;
  int place = -1;            // in the list of those that have a slot
  bool is_queued = false;    // in the fair queue
  bool is_promised = false;  // its next token is owed by due_us; otherwise that is an aim
  bool is_decoding = false;  // what it knew when it got its slot is computed, or planned to be
  bool is_caught_up = false; // by a step that is not settled
  bool is_held = false;      // its reader has no room
  bool is_parked = false;    // held, and its slot was given to others
  int renewals = 0;          // of the deadline of its first token
  int64_t submitted_us = 0, started_us = 0, last_us = 0, held_since_us = 0, held_us = 0;
  int64_t due_us = 0;        // of the next token
  Delays since;              // as they stood at the last token
};

class Schedule {
 public:
  // take_slot returns an idle slot for a request that is promised so many pages, with what is in memory of its prompt but the last token,
  // or slot -1.
  using TakeSlot = std::function<Taken(uint32_t request, int pages)>;
  // leave_slot is called for those that are parked; where there is none, whoever is held keeps its slot.
  using LeaveSlot = std::function<void(int slot)>;
  Schedule(const ScheduleLimits& limits, TakeSlot take_slot, LeaveSlot leave_slot = nullptr);

  // Answers at once. Unless refused, the request is the schedule's until it is removed.
  Decision submit(const Submission& submission, int64_t now_us);
  // Leaves, wherever it stands; `is_ended`: of itself, so that its length tells something. Returns its slot, or -1 if it had none.
  int remove(uint32_t request, bool is_ended, int64_t now_us);
  // Its reader takes nothing for now, or again. Meanwhile it sits steps out, and is parked once others want its room: then it waits for a
  // slot again, in which what is not cached any more is computed anew.
  void hold(uint32_t request, bool is_held, int64_t now_us);

  // The next step's rows, decodes first; empty when there is nothing to do. `started` receives the requests that got a slot.
  std::vector<Row> plan(int64_t now_us, std::vector<uint32_t>& started);
  // Of the pages promised to those in slots, so many were promised to another of them first: as of now, and until the next call.
  void shared(int pages) { pages_shared_ = pages; }
  // What the planned rows took; mapping their pages took `mapping_us` more.
  void measured(std::span<const Row> rows, int64_t begun_us, int64_t ended_us, int64_t mapping_us);
  // A planned row was computed; `sampled` new tokens are known. Not for rows of requests that were removed meanwhile.
  void settle(const Row& row, int sampled, int64_t now_us);

  // Those without a slot, in the order in which they would get one if nobody came.
  std::vector<uint32_t> waiting() const;
  int waiting_count() const { return static_cast<int>(waiting_.size()) + queue_.count(); }
  int waiting_count(ServiceClass service) const { return waiting_of_[static_cast<size_t>(service)]; }
  int running_count() const { return static_cast<int>(running_.size()); }
  bool fits_ever(int prompt_tokens, int tokens_max) const;
  bool contains(uint32_t request) const { return by_request_.contains(request); }
  const StepTime& step_time() const { return time_; }
  // When the step that was planned last ends, as far as that is known.
  int64_t step_ends_us() const { return step_ends_us_; }
  const Misses& misses() const { return misses_; }

 private:
  // Those without a first token, in the order in which they are served: the promised ones by deadline, then those who were promised nothing.
  using Turn = std::tuple<bool, int64_t, int>;  // is not promised, due_us, index
  struct Step;                                  // one under composition
  struct Room {
    int slots = 0, pages = 0;
  };

  int new_sequence(const Submission& submission, int64_t now_us);
  Turn turn_of(int index) const;
  void promise(int index, int64_t due_us);
  Room room_of(ServiceClass service) const;
  Commitments commitments(ServiceClass service, int64_t now_us) const;
  Newcomer newcomer(const Submission& submission, int64_t due_us) const;
  double work_us(const Submission& submission) const;
  void count_promised();
  void renew_late(int64_t now_us);
  void admit_queued(int64_t now_us);
  bool admit(int index, int64_t now_us);
  bool fills_step_before(const Turn& turn) const;
  void start_waiting(int64_t now_us, std::vector<uint32_t>& started);
  void start(int index, const Taken& taken, int64_t now_us);
  void leave(int index);

  // parking.cpp
  Room& room_taken_by(const Sequence& sequence);
  bool make_room(int pages, int64_t now_us);
  void park(int index);

  // compose.cpp
  std::vector<Row> compose(int64_t now_us);
  void gather_decodes(Step& step);
  void yield(Step& step, double step_us);
  double prefill_pressure(const Step& step) const;
  double time_for_step(Step& step);
  int whole_slice(int count, int others) const;
  void add_prefill(Step& step, double step_us);
  void begin(const Row& row);

  ScheduleLimits limits_;
  TakeSlot take_slot_;
  LeaveSlot leave_slot_;
  StepTime time_;
  AnswerLengths lengths_;
  Misses misses_;
  Shares shares_;
  std::array<PromiseMargin, service_classes> margins_;

  std::vector<Sequence> sequences_;
  std::vector<int> unused_;                     // indices into sequences_
  std::unordered_map<uint32_t, int> by_request_;
  FairQueue queue_;                             // not promised anything yet
  std::set<Turn> waiting_;                      // promised, or taken from the queue; without a slot
  std::set<Turn> prefilling_;                   // in a slot, prompt not yet computed
  std::vector<int> running_;                    // in a slot
  std::array<int, service_classes> waiting_of_{};  // each class's in waiting_ or queue_
  std::array<Room, service_classes> taken_{};   // by each class's in a slot; pages: promised to them
  Room held_;                                   // by those in a slot that would be parked for others
  int pages_shared_ = 0;

  // Of those in a slot or in waiting_, as of the last plan and what was promised since.
  int streams_promised_ = 0;
  double rows_per_us_ = 0, context_per_us_ = 0;
  int64_t itl_us_min_ = 0;
  int64_t step_ends_us_ = 0;                    // expected
  double slots_released_ = 0, pages_released_ = 0;  // by answers that ended of late, fading
  int64_t released_us_ = 0;                     // when they last faded
};

}  // namespace millrace
