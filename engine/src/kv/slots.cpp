#include "slots.h"

#include <cassert>

namespace millrace {

KvSlots::KvSlots(std::unique_ptr<KvMemory> memory, const KvLayout& layout, int slots)
    : memory_(std::move(memory)), layout_(layout), slots_(slots) {}

int KvSlots::take(int pages) {
  int best = -1;
  for (int slot = 0; slot < static_cast<int>(slots_.size()); slot++)
    if (!slots_[slot].taken && (best < 0 || slots_[slot].pages > slots_[best].pages)) best = slot;
  if (best < 0) return -1;
  slots_[best].taken = true;
  slots_[best].promised = pages;
  return best;
}

void KvSlots::give_back(int slot) {
  slots_[slot].taken = false;
  slots_[slot].promised = 0;
}

Status KvSlots::grow(int slot, int positions) {
  const int needed = layout_.pages_for(positions);
  assert(slots_[slot].taken && needed <= slots_[slot].promised);
  while (slots_[slot].pages < needed) {
    Status status = memory_->map(slot, slots_[slot].pages);
    if (status.ok())
      slots_[slot].pages++;
    else if (!strip_one_spare_page())
      return status;
  }
  return Status();
}

bool KvSlots::strip_one_spare_page() {
  for (int slot = static_cast<int>(slots_.size()) - 1; slot >= 0; slot--) {
    if (slots_[slot].pages <= slots_[slot].promised) continue;
    memory_->unmap(slot, --slots_[slot].pages);
    return true;
  }
  return false;
}

}  // namespace millrace
