// Which slot a sequence gets, which pages lie behind it, and what is kept of those that ended: the prefix cache.
//
// A slot whose sequence ended keeps its pages and, in the radix tree, the tokens they belong to. A sequence that starts takes what the
// longest match offers. Where it continues all that an idle slot holds, it *adopts* the slot, without a single mapping call; where such calls are
// slow also one that holds more, if that is little or would have to go for room (take.cpp). Otherwise
// full pages of the holder, idle or running, are *shared*: the same physical page behind both; what is left of a page is copied. Nobody
// writes a page that another maps: a page is made the writer's own before a step writes it.
//
// There are more slots than sequences can run, since addresses cost nothing. Pages come from the pool while it has any, then from the
// end of the idle slot that nobody used for longest. What running sequences were promised always fits: the rest is only cache.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "../schedule/pages.h"
#include "../schedule/taken.h"
#include "layout.h"
#include "memory.h"
#include "prefixes.h"
#include "status.h"

namespace millrace {

// What sequences may need, with at most so many positions in the steps that are not finished.
PageNeed kv_page_need(const KvPlan& plan, int step_tokens_max);

struct PrefixCounts {
  uint64_t hits = 0;
  uint64_t hit_tokens = 0;
  uint64_t evicted_tokens = 0;  // given up for pages or for a slot
};

class KvSlots {
 public:
  // `memory` has slots x groups ranges.
  KvSlots(std::unique_ptr<KvMemory> memory, KvPlan plan, int slots, bool keeps_prefixes = true);

  // A slot for a sequence that begins with these tokens and is promised `pages`, with what is cached of all of them but the last, whose
  // logits must be computed. Changes no mapping yet: open does. Slot -1 where all are taken, or as good as taken until others are open.
  Taken take(std::span<const int32_t> tokens, int pages);
  // A slot for something that is neither looked up nor kept.
  int take(int pages) { return take({}, pages).slot; }
  // Brings what was cached into the slot. Slots are opened in the order in which they were taken, before any grows or is given back.
  Status open(int slot);
  // Makes positions first to first + count - 1 of a taken slot writable, and those that they see readable. Within the promise it fails
  // only where the system does. Steps that are not finished may still read what positions from `settled` on see.
  Status grow(int slot, int first, int count, int settled);
  Status grow(int slot, int first, int count) { return grow(slot, first, count, first); }
  // Comes between these and the step: waits until what they mapped can be touched.
  Status await() { return memory_->await(); }
  // Where memory can be mapped ahead: begins to map what the first `until` positions of slots will need, as far as pages are free. Nothing waits for it.
  struct Ahead {
    int slot, until;
  };
  bool maps_ahead() const { return memory_->maps_ahead(); }
  void prepare(std::span<const Ahead> sequences);
  // A step has computed these tokens, which follow those that the slot holds.
  void computed(int slot, std::span<const int32_t> tokens);
  // The sequence has ended or left. What was computed stays while nobody wants the room.
  void give_back(int slot);

  uint8_t* base(int slot, int group) const { return memory_->base(range_of(slot, group)); }
  const KvPlan& plan() const { return plan_; }
  int pages_mapped() const { return memory_->pages_mapped(); }
  int pages_max() const { return memory_->pages_max(); }
  // Of what is mapped, the bytes that hold keys and values of tokens: the rest is tails of pages, padding, and pages ahead of need. Looks at
  // every page.
  uint64_t bytes_held() const;
  const PrefixCounts& counts() const { return counts_; }
  // How many tokens a slot holds.
  int held(int slot) const { return prefixes_.length(slot); }
  // To all that have slots: what they have and may yet need.
  int pages_promised() const { return promised_ - shared_; }
  // So many more they would be, were a page that several of them read counted for each.
  int pages_shared() const { return shared_; }

 private:
  struct Range {
    int first = 0, end = 0;  // pages mapped: first to end - 1
  };
  struct Slot {
    std::vector<Range> ranges;  // [group]
    int promised = 0;           // pages; 0 while idle
    int grown = 0;              // positions that the sequence wrote or is about to
    bool is_taken = false;
    bool is_kept = false;       // what it computes is, for others to find
    bool is_open = true;
    int source = -1;            // until it is open: who holds the prefix to be shared, or none
    int read = 0;               // tokens whose full pages are counted in readers_; 0 while idle
    int reserved = 0;           // pages for the copies that opening makes
    int readers = 0;            // slots to be opened from this one,
    int pinned = 0;             // and how many of its tokens they need
    uint64_t used = 0;          // when it was last taken, shared or given back, in uses of any slot
  };
  struct Found {
    int slot = -1, length = 0;
    bool is_adopted = false;
  };

  int range_of(int slot, int group) const { return slot * plan_.group_count() + group; }
  Slot& at(int slot) { return slots_[static_cast<size_t>(slot)]; }
  const Slot& at(int slot) const { return slots_[static_cast<size_t>(slot)]; }
  Range& range(int slot, int group) { return at(slot).ranges[static_cast<size_t>(group)]; }
  const KvLayout& layout(int group) const { return plan_.groups[static_cast<size_t>(group)]; }
  bool is_full() const { return memory_->pages_mapped() >= memory_->pages_max(); }

  // take.cpp
  Found find(std::span<const int32_t> tokens, int pages) const;
  bool serves(int slot, int length) const;
  bool is_better_used_on(int slot, int length) const;
  int sharable(int slot, int length, int pages) const;
  int copies(int length) const;
  int choose_idle(bool wants_pages, int except) const;
  void forget(int slot, int length);

  template <typename Wants, typename Take>
  Status take_page(const Wants& wants, const Take& take);
  Status share(int slot);
  Status map_next(int slot, int group);
  void prepare(int slot, int group, int until);
  Status own(int slot, int group, int page);
  void drop(int slot, int group, int first, int end);
  void trim(int slot, int tokens);
  template <typename Visit>
  void visit_full(int slot, int first, int end, const Visit& visit);
  void count_read(int slot, int tokens);

  // reclaim.cpp
  bool reclaim_page();
  bool reclaim_spare_page(bool is_taken);
  bool reclaim_cached_page(bool is_shared_too);
  int last_group(int slot) const;
  int last_start(int slot, int group) const;

  std::unique_ptr<KvMemory> memory_;
  KvPlan plan_;
  bool keeps_prefixes_;
  Prefixes prefixes_;
  std::vector<Slot> slots_;
  int promised_ = 0;  // pages, to all that are taken
  int shared_ = 0;    // of these, those that another was promised first
  std::vector<int> readers_;  // [physical page] -> taken slots that have it and never write it, where several may
  int reserved_ = 0;  // pages for copies, by slots that are taken and not open
  uint64_t uses_ = 0;
  PrefixCounts counts_;
};

}  // namespace millrace
