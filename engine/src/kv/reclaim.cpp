// Where a page comes from once the pool has none: first what nobody is meant to have, then the end of the idle slot that nobody used for
// longest, so that its beginning stays of use.
#include <algorithm>

#include "slots.h"

namespace millrace {

// Frees a page, or brings one nearer to being free: it may be behind other slots too.
bool KvSlots::reclaim_page() { return reclaim_spare_page(false) || reclaim_spare_page(true) || reclaim_cached_page(false) || reclaim_cached_page(true); }

// A page that holds nothing: left from what an idle slot held before, or in front of a sequence that took such a slot.
bool KvSlots::reclaim_spare_page(bool is_taken) {
  for (int slot = 0; slot < static_cast<int>(slots_.size()); slot++) {
    const Slot& each = at(slot);
    if (each.is_taken != is_taken) continue;
    const int used = std::max({each.grown, each.pinned, held(slot)});
    for (int group = 0; group < plan_.group_count(); group++) {
      const Range range = each.ranges[static_cast<size_t>(group)];
      if (range.end <= std::max(range.first, layout(group).pages_for(used))) continue;
      drop(slot, group, range.end - 1, range.end);
      return true;
    }
  }
  return false;
}

// The group whose last page begins last: what it holds is given up first.
int KvSlots::last_group(int slot) const {
  int last = 0;
  for (int group = 1; group < plan_.group_count(); group++)
    if (last_start(slot, group) > last_start(slot, last)) last = group;
  return last;
}

// The first token in the last page that a slot's tokens need in a group.
int KvSlots::last_start(int slot, int group) const { return (layout(group).pages_for(held(slot)) - 1) * layout(group).page_tokens; }

bool KvSlots::reclaim_cached_page(bool is_shared_too) {
  int oldest = -1;
  for (int slot = 0; slot < static_cast<int>(slots_.size()); slot++) {
    const Slot& each = at(slot);
    if (each.is_taken || held(slot) == 0 || (oldest >= 0 && each.used > at(oldest).used)) continue;
    const int group = last_group(slot);
    if (last_start(slot, group) < each.pinned) continue;
    if (!is_shared_too && memory_->is_shared(range_of(slot, group), each.ranges[static_cast<size_t>(group)].end - 1)) continue;
    oldest = slot;
  }
  if (oldest < 0) return false;
  const int group = last_group(oldest), length = last_start(oldest, group), end = range(oldest, group).end;
  drop(oldest, group, end - 1, end);
  forget(oldest, length);
  // A window's pages end where the last one that was written ends: of a shorter prefix they may be of no use.
  if (!serves(oldest, held(oldest))) forget(oldest, 0);
  return true;
}

}  // namespace millrace
