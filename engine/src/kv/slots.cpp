#include "slots.h"

#include <algorithm>
#include <cassert>

namespace millrace {
namespace {

// An answer's last tokens are often not those that the next turn's prompt has in their place: so many more than a window sees are kept.
constexpr int rollback_tokens = 16;

// The first page that a sequence still reads which has computed so many positions.
int first_page(const KvLayout& group, int computed, int more) {
  return group.window == 0 ? 0 : std::max(0, computed + 1 - group.window - more) / group.page_tokens;
}

}  // namespace

KvSlots::KvSlots(std::unique_ptr<KvMemory> memory, KvPlan plan, int slots, bool keeps_prefixes)
    : memory_(std::move(memory)), plan_(std::move(plan)), keeps_prefixes_(keeps_prefixes), prefixes_(slots),
      slots_(static_cast<size_t>(slots), Slot{.ranges = std::vector<Range>(plan_.groups.size())}), readers_(static_cast<size_t>(memory_->pages_max())) {}

PageNeed kv_page_need(const KvPlan& plan, int step_tokens_max) {
  PageNeed need{.groups = {}};
  for (const KvLayout& group : plan.groups) {
    PageNeed::Group each{.page_tokens = group.page_tokens};
    // So many positions in a row, wherever they begin in a page.
    const int positions = group.window - 1 + rollback_tokens + step_tokens_max;
    if (group.window > 0) each.pages_max = (positions + group.page_tokens - 2) / group.page_tokens + 1;
    need.groups.push_back(each);
  }
  return need;
}

// Does what takes a page from the pool, and reclaims pages for it where the pool has none: before, or after it has shown that there are fewer
// than was thought. `wants` says whether it still takes one, since reclaiming may have seen to that too.
template <typename Wants, typename Take>
Status KvSlots::take_page(const Wants& wants, const Take& take) {
  Status status;
  do {
    while (is_full() && wants() && reclaim_page()) {
    }
    status = take();
  } while (!status.ok() && is_full() && wants() && reclaim_page());
  return status;
}

Status KvSlots::open(int slot) {
  Slot& opened = at(slot);
  if (opened.is_open) return Status();
  opened.is_open = true;
  // Pages that are left from the slot's last sequence serve this one where they begin at its beginning.
  for (int group = 0; group < plan_.group_count(); group++)
    if (opened.source >= 0 || range(slot, group).first > 0) drop(slot, group, range(slot, group).first, range(slot, group).end);
  if (opened.source < 0) return Status();
  const Status status = share(slot);
  if (status.ok()) count_read(slot, held(slot));
  if (status.ok() && at(opened.source).is_taken) count_read(opened.source, held(slot));
  if (Slot& source = at(opened.source); --source.readers == 0) source.pinned = 0;
  reserved_ -= opened.reserved;
  opened.source = -1;
  opened.reserved = 0;
  return status;
}

// Puts the full pages of the source behind the slot too, and copies of those that the sequence will write.
Status KvSlots::share(int slot) {
  const int source = at(slot).source, length = held(slot);
  for (int group = 0; group < plan_.group_count(); group++) {
    const int end = layout(group).pages_for(length), full = length / layout(group).page_tokens;
    Range& pages = range(slot, group);
    pages.first = pages.end = first_page(layout(group), length, 0);
    for (; pages.end < end; pages.end++) {
      const int to = range_of(slot, group), from = range_of(source, group);
      const auto copy = [&] { return memory_->copy(to, pages.end, from, pages.end); };
      const Status status = pages.end < full ? memory_->alias(to, pages.end, from, pages.end) : take_page([] { return true; }, copy);
      if (status.ok()) continue;
      prefixes_.remove(slot);
      return status;
    }
  }
  return Status();
}

Status KvSlots::grow(int slot, int first, int count, int settled) {
  Slot& growing = at(slot);
  growing.grown = first + count;
  assert(growing.is_taken && growing.is_open);
  for (int group = 0; group < plan_.group_count(); group++) {
    Range& pages = range(slot, group);
    // What lies behind the window goes to the pool, which gives it out first: most often it comes back at once, in front.
    drop(slot, group, pages.first, std::min(pages.end, first_page(layout(group), settled, rollback_tokens)));
    const int written = first / layout(group).page_tokens, end = layout(group).pages_for(first + count);
    for (int page = written; page < end; page++) {
      const bool is_new = page >= pages.end;
      assert(page <= pages.end);
      if (Status status = is_new ? map_next(slot, group) : own(slot, group, page); !status.ok()) return status;
    }
  }
  return Status();
}

Status KvSlots::map_next(int slot, int group) {
  Range& pages = range(slot, group);
  Status status = take_page([] { return true; }, [&] { return memory_->map(range_of(slot, group), pages.end); });
  if (status.ok()) pages.end++;
  return status;
}

void KvSlots::prepare(std::span<const Ahead> sequences) {
  for (const Ahead& each : sequences)
    for (int group = 0; group < plan_.group_count(); group++) prepare(each.slot, group, each.until);
  memory_->start();
}

void KvSlots::prepare(int slot, int group, int until) {
  Range& pages = range(slot, group);
  for (const int end = layout(group).pages_for(until); pages.end < end && !is_full(); pages.end++)
    if (!memory_->map_ahead(range_of(slot, group), pages.end).ok()) return;
}

// A page that others map too needs a free one to be copied to; but reclaiming may leave it to us alone.
Status KvSlots::own(int slot, int group, int page) {
  const int own = range_of(slot, group);
  return take_page([&] { return memory_->is_shared(own, page); }, [&] { return memory_->own(own, page); });
}

void KvSlots::drop(int slot, int group, int first, int end) {
  Range& pages = range(slot, group);
  if (first >= end) return;
  memory_->unmap(range_of(slot, group), first, end - first);
  // From either end, so that what is left follows one another.
  assert(first == pages.first || end == pages.end);
  if (first == pages.first)
    pages.first = end;
  else
    pages.end = first;
  if (pages.first == pages.end) pages = {};
}

// Gives up what lies behind the pages that so many tokens need. Who grows into it later has it mapped ahead again; where nothing is mapped ahead, or kept, it
// stays for whoever comes next.
void KvSlots::trim(int slot, int tokens) {
  if (!at(slot).is_kept || !memory_->maps_ahead()) return;
  for (int group = 0; group < plan_.group_count(); group++) {
    const Range pages = range(slot, group);
    drop(slot, group, std::clamp(layout(group).pages_for(tokens), pages.first, pages.end), pages.end);
  }
}

// The full pages of a taken slot's positions first to end - 1, but for windows, which leave theirs behind.
template <typename Visit>
void KvSlots::visit_full(int slot, int first, int end, const Visit& visit) {
  for (int group = 0; group < plan_.group_count(); group++)
    for (int page = first / layout(group).page_tokens; layout(group).window == 0 && page < end / layout(group).page_tokens; page++)
      visit(readers_[static_cast<size_t>(memory_->physical(range_of(slot, group), page))]);
}

// A taken slot only reads its first `tokens` tokens from now on, and so may others. Until the last of them leaves none of these pages is free,
// so that one promise of each is enough.
void KvSlots::count_read(int slot, int tokens) {
  visit_full(slot, at(slot).read, tokens, [&](int& readers) { shared_ += readers++ > 0 ? 1 : 0; });
  at(slot).read = std::max(at(slot).read, tokens);
}

uint64_t KvSlots::bytes_held() const {
  double bytes = 0;
  for (int slot = 0; slot < static_cast<int>(slots_.size()); slot++) {
    const int tokens = std::max(at(slot).grown, held(slot));
    for (int group = 0; group < plan_.group_count(); group++) {
      const KvLayout& layout = plan_.groups[static_cast<size_t>(group)];
      const Range range = at(slot).ranges[static_cast<size_t>(group)];
      for (int page = range.first; page < range.end && page * layout.page_tokens < tokens; page++) {
        const int there = std::min(tokens - page * layout.page_tokens, layout.page_tokens);
        bytes += static_cast<double>(there * layout.token_bytes()) / memory_->users(range_of(slot, group), page);
      }
    }
  }
  return static_cast<uint64_t>(bytes);
}

void KvSlots::computed(int slot, std::span<const int32_t> tokens) {
  if (at(slot).is_kept) prefixes_.extend(slot, tokens);
}

void KvSlots::give_back(int slot) {
  Slot& idle = at(slot);
  assert(idle.is_taken && idle.is_open);
  // Who is about to copy from it must find a page that was promised to nobody, now that its own is not promised any more.
  for (size_t reader = 0; idle.readers > 0 && reader < slots_.size(); reader++) {
    if (slots_[reader].source != slot || slots_[reader].reserved > 0) continue;
    slots_[reader].reserved = copies(held(static_cast<int>(reader)));
    reserved_ += slots_[reader].reserved;
  }
  visit_full(slot, 0, idle.read, [&](int& readers) { shared_ -= --readers > 0 ? 1 : 0; });
  trim(slot, held(slot));
  promised_ -= idle.promised;
  idle.is_taken = idle.is_kept = false;
  idle.promised = idle.grown = idle.read = 0;
  idle.used = ++uses_;
}

}  // namespace millrace
