// Which slot a sequence gets and which pages lie behind it. Reuse comes before mapping: a slot keeps its pages when its sequence ends,
// the next sequence takes the slot with the most, and only when the pool has nothing free are slots stripped: idle ones, and those that
// keep more than their sequence was promised.
#pragma once

#include <memory>
#include <vector>

#include "layout.h"
#include "memory.h"
#include "status.h"

namespace millrace {

class KvSlots {
 public:
  KvSlots(std::unique_ptr<KvMemory> memory, const KvLayout& layout, int slots);

  // An idle slot, the one with the most pages, for a sequence that is promised `pages` of them; -1 where all are taken.
  int take(int pages);
  void give_back(int slot);

  // Makes positions 0 to positions - 1 of a taken slot touchable, within its promise. Fails only when more was promised than the pool holds.
  Status grow(int slot, int positions);

  uint8_t* base(int slot) const { return memory_->base(slot); }
  const KvLayout& layout() const { return layout_; }
  int pages_mapped() const { return memory_->pages_mapped(); }
  int pages_max() const { return memory_->pages_max(); }

 private:
  bool strip_one_spare_page();

  std::unique_ptr<KvMemory> memory_;
  KvLayout layout_;
  struct Slot {
    int pages = 0;     // mapped, from the first on
    int promised = 0;  // to the sequence that has it; 0 while idle
    bool taken = false;
  };
  std::vector<Slot> slots_;
};

}  // namespace millrace
