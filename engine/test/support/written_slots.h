// Slots whose memory is written as a step would: at each position, in each group, what the tokens up to there hash to. A page that is
// shared where it should not be, lost, or written by two, shows as another hash; one that is not mapped, as a crash.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "kv/slots.h"
#include "support/test.h"

namespace millrace::test {

// Counts the calls that cost a system call each.
class CountedMemory final : public KvMemory {
 public:
  CountedMemory(std::unique_ptr<KvMemory> memory, int& calls) : memory_(std::move(memory)), calls_(calls) {}

  uint8_t* base(int range) const override { return memory_->base(range); }
  Status map(int range, int page) override { return calls_++, memory_->map(range, page); }
  Status alias(int range, int page, int from_range, int from_page) override { return calls_++, memory_->alias(range, page, from_range, from_page); }
  Status copy(int range, int page, int from_range, int from_page) override { return calls_++, memory_->copy(range, page, from_range, from_page); }
  Status own(int range, int page) override { return calls_ += memory_->is_shared(range, page), memory_->own(range, page); }
  void unmap(int range, int page) override { calls_++, memory_->unmap(range, page); }
  bool is_shared(int range, int page) const override { return memory_->is_shared(range, page); }
  int pages_mapped() const override { return memory_->pages_mapped(); }
  int pages_max() const override { return memory_->pages_max(); }
  int places_mapped() const override { return memory_->places_mapped(); }
  int places_max() const override { return memory_->places_max(); }

 private:
  std::unique_ptr<KvMemory> memory_;
  int& calls_;
};

using Tokens = std::vector<int32_t>;

class WrittenSlots {
 public:
  static constexpr int64_t page_bytes = 4096;

  // Layers of the given windows; T is 16 or more.
  WrittenSlots(const std::vector<int>& windows, int slots, int pages_max, int tokens_max, int step_tokens_max, bool keeps_prefixes = true)
      : plan_(plan_pages(windows, 1, 16, KvElement::float32, page_bytes)), need(kv_page_need(plan_, step_tokens_max)), told_(static_cast<size_t>(slots)) {
    auto reserved = reserve_kv_memory(slots * plan_.group_count(), plan_.pages_a_range(tokens_max), page_bytes, pages_max);
    REQUIRE(reserved.ok(), reserved.message());
    auto counted = std::make_unique<CountedMemory>(reserved.take(), calls);
    memory_ = counted.get();
    slots_ = std::make_unique<KvSlots>(std::move(counted), plan_, slots, keeps_prefixes);
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
    const Status status = slots_->open(slot);
    REQUIRE(status.ok(), status.message());
    check(slot);
  }
  // Computes these tokens behind those that the slot holds, in one row.
  void compute(int slot, const Tokens& tokens) {
    Tokens& all = told(slot);
    const int first = static_cast<int>(all.size()), count = static_cast<int>(tokens.size());
    const Status status = slots_->grow(slot, first, count);
    REQUIRE(status.ok(), status.message());
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
  void end(int slot) {
    slots_->give_back(slot);
    check_idle(slot);
  }
  const Tokens& tokens(int slot) const { return told_[static_cast<size_t>(slot)]; }
  int slot_count() const { return static_cast<int>(told_.size()); }

  int calls = 0;

 private:
  KvPlan plan_;

 public:
  PageNeed need;

 private:
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

  CountedMemory* memory_ = nullptr;
  std::unique_ptr<KvSlots> slots_;
  std::vector<Tokens> told_;  // [slot]
};

}  // namespace millrace::test
