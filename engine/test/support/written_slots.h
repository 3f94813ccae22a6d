// Slots whose memory is written as a step would: at each position, in each group, what the tokens up to there hash to. A page that is
// shared where it should not be, lost, or written by two, shows as another hash; one that is not mapped, as a crash.
#pragma once

#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "kv/slots.h"
#include "support/test.h"

namespace millrace::test {

// Counts the calls that cost a system call each. There are no more than made_max pages.
class CountedPages final : public KvPages {
 public:
  CountedPages(std::unique_ptr<KvPages> pages, std::atomic<int>& calls, const int& made_max) : pages_(std::move(pages)), calls_(calls), made_max_(made_max) {}

  uint8_t* address(int64_t place) const override { return pages_->address(place); }
  int64_t places_max() const override { return pages_->places_max(); }
  Status create(int page) override { return page < made_max_ ? pages_->create(page) : Status::error("there is no memory for one more page"); }
  Status attach(int64_t place, int page, bool is_writable) override { return calls_++, pages_->attach(place, page, is_writable); }
  Status protect(int64_t place, bool is_writable) override { return calls_++, pages_->protect(place, is_writable); }
  void detach(int64_t place, int count) override { calls_++, pages_->detach(place, count); }
  Status copy(int page, int64_t from) override { return calls_++, pages_->copy(page, from); }

 private:
  std::unique_ptr<KvPages> pages_;
  std::atomic<int>& calls_;
  const int& made_max_;
};

using Tokens = std::vector<int32_t>;

class WrittenSlots {
 public:
  static constexpr int64_t page_bytes = 4096;

  // Layers of the given windows; T is 16 or more.
  WrittenSlots(const std::vector<int>& windows, int slots, int pages_max, int tokens_max, int step_tokens_max, bool keeps_prefixes = true, bool maps_ahead = false)
      : plan_(plan_pages(windows, 1, 16, KvElement::float32, page_bytes)), need(kv_page_need(plan_, step_tokens_max)), told_(static_cast<size_t>(slots)) {
    const KvMemory::Shape shape{slots * plan_.group_count(), plan_.pages_a_range(tokens_max), pages_max};
    auto reserved = reserve_mmap_pages(shape.places(), page_bytes);
    REQUIRE(reserved.ok(), reserved.message());
    auto memory = std::make_unique<KvMemory>(std::make_unique<CountedPages>(reserved.take(), calls, made_max), shape, maps_ahead);
    memory_ = memory.get();
    slots_ = std::make_unique<KvSlots>(std::move(memory), plan_, slots, keeps_prefixes);
  }

  KvSlots& slots() { return *slots_; }
  const KvPlan& plan() const { return plan_; }

  // Taken, not yet open.
  Taken take(const Tokens& tokens, int tokens_max) {
    const Taken taken = slots_->take(tokens, need.of(tokens_max));
    if (taken.slot < 0) return taken;
    CHECK(taken.cached >= 0 && taken.cached < static_cast<int>(tokens.size()), taken.cached, " cached of ", tokens.size());
    told(taken.slot).assign(tokens.begin(), tokens.begin() + taken.cached);
    return taken;
  }
  Taken start(const Tokens& tokens, int tokens_max) {
    const Taken taken = take(tokens, tokens_max);
    REQUIRE(taken.slot >= 0);
    open(taken.slot);
    return taken;
  }
  void open(int slot) {
    await(slots_->open(slot));
    check(slot);
  }
  // Computes these tokens behind those that the slot holds, in one row.
  void compute(int slot, const Tokens& tokens) {
    Tokens& all = told(slot);
    const int first = static_cast<int>(all.size()), count = static_cast<int>(tokens.size());
    await(slots_->grow(slot, first, count));
    all.insert(all.end(), tokens.begin(), tokens.end());
    for (int group = 0; group < plan_.group_count(); group++)
      for (int position = first; position < first + count; position++) {
        const int page = position / layout(group).page_tokens;
        CHECK(!memory_->is_shared(slot * plan_.group_count() + group, page), "position ", position, " is written in a shared page");
        const uint64_t value = hash(all, position);
        std::memcpy(address(slot, group, position), &value, sizeof(value));
      }
    slots_->computed(slot, tokens);
    check(slot, first);
  }
  // What a slot holds, as far as a next token would read it, or one that stands at `first`.
  void check(int slot, int first = -1) {
    const Tokens& all = told(slot);
    for (int group = 0; group < plan_.group_count(); group++) {
      const int window = layout(group).window, at = first < 0 ? static_cast<int>(all.size()) : first;
      for (int position = window > 0 ? std::max(0, at + 1 - window) : 0; position < static_cast<int>(all.size()); position++) {
        uint64_t value;
        std::memcpy(&value, address(slot, group, position), sizeof(value));
        REQUIRE(value == hash(all, position), "slot ", slot, " group ", group, " position ", position, " of ", all.size(), " holds something else");
      }
    }
  }
  // An idle slot holds the beginning of what its sequence computed.
  void check_idle(int slot) {
    Tokens& all = told(slot);
    REQUIRE(slots_->held(slot) <= static_cast<int>(all.size()));
    all.resize(static_cast<size_t>(slots_->held(slot)));
    if (!all.empty()) check(slot);
  }
  // Maps ahead what so many tokens more would need.
  void prepare(int slot, int more) { slots_->prepare(std::vector<KvSlots::Ahead>{{slot, static_cast<int>(told(slot).size()) + more}}); }
  void end(int slot) {
    slots_->give_back(slot);
    check_idle(slot);
  }
  const Tokens& tokens(int slot) const { return told_[static_cast<size_t>(slot)]; }
  int slot_count() const { return static_cast<int>(told_.size()); }

  std::atomic<int> calls = 0;
  int made_max = std::numeric_limits<int>::max();

 private:
  KvPlan plan_;

 public:
  PageNeed need;

 private:
  void await(Status asked) {
    const Status status = asked.ok() ? slots_->await() : asked;
    REQUIRE(status.ok(), status.message());
  }
  Tokens& told(int slot) { return told_[static_cast<size_t>(slot)]; }
  const KvLayout& layout(int group) const { return plan_.groups[static_cast<size_t>(group)]; }
  uint8_t* address(int slot, int group, int position) {
    const int tokens = layout(group).page_tokens;
    return slots_->base(slot, group) + position / tokens * page_bytes + position % tokens * (page_bytes / tokens);
  }
  static uint64_t hash(const Tokens& tokens, int position) {
    uint64_t mixed = 0xcbf29ce484222325u;
    for (int i = 0; i <= position; i++) mixed = (mixed ^ static_cast<uint64_t>(tokens[static_cast<size_t>(i)] + 1)) * 0x100000001b3u;
    return mixed;
  }

  KvMemory* memory_ = nullptr;
  std::unique_ptr<KvSlots> slots_;
  std::vector<Tokens> told_;  // [slot]
};

}  // namespace millrace::test
