// Who decides in a simulation: the engine's schedule, or what it is compared with.
#pragma once

#include <algorithm>
#include <deque>
#include <unordered_map>
#include <vector>

#include "schedule/schedule.h"

namespace millrace::bench {

class Policy {
 public:
  virtual ~Policy() = default;
  virtual Decision submit(const Submission& submission, int64_t now_us) = 0;
  virtual std::vector<Row> plan(int64_t now_us) = 0;
  virtual void settle(std::span<const Row> rows, int64_t begun_us, int64_t ended_us) = 0;
  virtual void remove(uint32_t request, int64_t now_us) = 0;
};

class Ours final : public Policy {
 public:
  explicit Ours(const ScheduleLimits& limits) : slots_(limits.slots_max), schedule(limits, [this](uint32_t, int) { return Taken{.slot = take_slot()}; }) {
    for (int slot = 0; slot < limits.slots_max; slot++) slots_[slot] = slot;
  }
  Decision submit(const Submission& submission, int64_t now_us) override { return schedule.submit(submission, now_us); }
  std::vector<Row> plan(int64_t now_us) override {
    started_.clear();
    return schedule.plan(now_us, started_);
  }
  void settle(std::span<const Row> rows, int64_t begun_us, int64_t ended_us) override {
    schedule.measured(rows, begun_us, ended_us, 0);
    for (const Row& row : rows) schedule.settle(row, row.samples, ended_us);
  }
  void remove(uint32_t request, int64_t now_us) override { slots_.push_back(schedule.remove(request, true, now_us)); }

 private:
  int take_slot() {
    if (slots_.empty()) return -1;
    const int slot = slots_.back();
    slots_.pop_back();
    return slot;
  }
  std::vector<int> slots_;
  std::vector<uint32_t> started_;

 public:
  Schedule schedule;
};

// First come, first served, as servers do it today: all decodes, then prompts in order of arrival, up to a fixed number of positions a step.
class FirstCome final : public Policy {
 public:
  FirstCome(int chunk_tokens, int slots_max, int kv_tokens_max, int waiting_max)
      : chunk_tokens_(chunk_tokens), slots_max_(slots_max), kv_tokens_max_(kv_tokens_max), waiting_max_(waiting_max) {}

  Decision submit(const Submission& submission, int64_t) override {
    if (static_cast<int>(waiting_.size()) >= waiting_max_) return {.verdict = Verdict::refused, .retry_after_us = 1'000'000};
    waiting_.push_back({submission.request, submission.prompt_tokens, 0, submission.prompt_tokens + submission.tokens_max});
    return {.ttft_us = submission.deadlines.ttft_us, .itl_us = submission.deadlines.itl_us};
  }
  std::vector<Row> plan(int64_t) override {
    while (!waiting_.empty() && static_cast<int>(running_.size()) < slots_max_ && taken_ + waiting_.front().bound <= kv_tokens_max_) {
      taken_ += waiting_.front().bound;
      running_.push_back(waiting_.front());
      waiting_.pop_front();
    }
    std::vector<Row> rows;
    for (const Running& each : running_)
      if (each.known - each.computed == 1) rows.push_back({each.request, 0, each.computed, 1, 1});
    int room = chunk_tokens_ - static_cast<int>(rows.size());
    for (const Running& each : running_) {
      const int left = each.known - each.computed, count = std::min(left, room);
      if (left == 1 || count < 1) continue;
      rows.push_back({each.request, 0, each.computed, count, count == left ? 1 : 0});
      room -= count;
    }
    return rows;
  }
  void settle(std::span<const Row> rows, int64_t, int64_t) override {
    std::unordered_map<uint32_t, const Row*> of;
    for (const Row& row : rows) of.emplace(row.request, &row);
    for (Running& each : running_)
      if (const auto found = of.find(each.request); found != of.end()) {
        each.computed += found->second->count;
        each.known += found->second->samples;
      }
  }
  void remove(uint32_t request, int64_t) override {
    const auto found = std::find_if(running_.begin(), running_.end(), [&](const Running& each) { return each.request == request; });
    taken_ -= found->bound;
    running_.erase(found);
  }

 private:
  struct Running {
    uint32_t request;
    int known, computed, bound;
  };
  int chunk_tokens_, slots_max_, kv_tokens_max_, waiting_max_;
  int64_t taken_ = 0;
  std::deque<Running> waiting_;
  std::vector<Running> running_;
};

}  // namespace millrace::bench
