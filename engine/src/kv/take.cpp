// What a sequence that starts can have of what is in memory, and which slot it gets.
#include <algorithm>
#include <cassert>

#include "slots.h"

namespace millrace {
namespace {

// Less than a tile is computed as fast as a page is copied.
constexpr int match_tokens_min = tile_tokens;
// Where changes are slow, a slot whose rest is at most so long beside what it has of a prefix is rather used on than left alone, unless it
// was used of late: its owner may be back.
constexpr int rest_part = 16;
constexpr uint64_t young_uses = 32;  // two or three a sequence

}  // namespace

// Whether a slot has all that a sequence reads that continues its first `length` tokens.
bool KvSlots::serves(int slot, int length) const {
  if (!at(slot).is_open) return false;
  for (int group = 0; group < plan_.group_count(); group++) {
    const int window = layout(group).window;
    const Range pages = at(slot).ranges[static_cast<size_t>(group)];
    if (pages.end < layout(group).pages_for(length)) return false;
    if (pages.first > 0 && length + 1 - window < pages.first * layout(group).page_tokens) return false;
  }
  return true;
}

// Pages that are shared only in part, so that a copy must be made.
int KvSlots::copies(int length) const {
  return static_cast<int>(std::count_if(plan_.groups.begin(), plan_.groups.end(), [&](const KvLayout& group) { return length % group.page_tokens != 0; }));
}

// How much of the first `length` tokens of a slot can be shared by a sequence that is promised so many pages; 0: it is not worth it.
int KvSlots::sharable(int slot, int length, int pages) const {
  // The copied page of an idle slot is neither promised to anybody nor to be reclaimed until it is copied. Where there is no room for
  // that, full pages alone are shared.
  const bool has_room = at(slot).is_taken || pages_promised() + pages + reserved_ + copies(length) <= pages_max();
  if (!has_room && plan_.group_count() > 1) return 0;
  if (!has_room) length -= length % layout(0).page_tokens;
  if (length < match_tokens_min || !serves(slot, length)) return 0;
  int places = 0;
  for (const KvLayout& group : plan_.groups) places += group.pages_for(length);
  return memory_->places_mapped() + places <= memory_->places_max() ? length : 0;
}

// Whether to go on in an idle slot that holds more than the match, and lose that, rather than to put its pages behind another slot too.
bool KvSlots::is_better_used_on(int slot, int length) const {
  if (slot < 0 || !memory_->maps_ahead()) return false;
  const uint64_t age = uses_ - at(slot).used;
  if (age >= young_uses && (held(slot) - length) * rest_part <= length) return true;
  // Something must go in any case: what nobody used for about as long as anything that is kept.
  bool has_empty = false;
  uint64_t oldest_age = age;
  for (int other = 0; other < static_cast<int>(slots_.size()); other++) {
    if (at(other).is_taken || at(other).readers > 0) continue;
    has_empty |= held(other) == 0;
    if (held(other) > 0) oldest_age = std::max(oldest_age, uses_ - at(other).used);
  }
  return (is_full() || !has_empty) && age * 2 >= oldest_age;
}

KvSlots::Found KvSlots::find(std::span<const int32_t> tokens, int pages) const {
  Found best, oldest;
  prefixes_.match(tokens, [&](int slot, int length) {
    if (length < best.length) return false;
    const Slot& holder = at(slot);
    const bool is_idle = !holder.is_taken && holder.readers == 0 && serves(slot, length);
    const int tail = held(slot) - length;
    const bool is_continued = tail == 0 || (tail < layout(0).page_tokens && length >= match_tokens_min);
    if (is_idle && is_continued) {
      best = {slot, length, true};
      return false;
    }
    if (is_idle && length >= match_tokens_min && (length > oldest.length || (length == oldest.length && holder.used < at(oldest.slot).used))) oldest = {slot, length, true};
    if (const int shared = sharable(slot, length, pages); shared > best.length) best = {slot, shared, false};
    return true;
  });
  return !best.is_adopted && oldest.length >= best.length && is_better_used_on(oldest.slot, oldest.length) ? oldest : best;
}

// One that holds nothing, with the most pages or with the fewest; else the one that nobody used for longest.
int KvSlots::choose_idle(bool wants_pages, int except) const {
  int best = -1, best_pages = 0;
  for (int slot = 0; slot < static_cast<int>(slots_.size()); slot++) {
    if (at(slot).is_taken || at(slot).readers > 0 || slot == except) continue;
    int pages = 0;
    for (const Range& range : at(slot).ranges) pages += range.end - range.first;
    const bool is_empty = held(slot) == 0;
    const bool is_better = best < 0 || (is_empty != (held(best) == 0)               ? is_empty
                                        : !is_empty                                 ? at(slot).used < at(best).used
                                        : wants_pages                               ? pages > best_pages
                                                                                    : pages < best_pages);
    if (!is_better) continue;
    best = slot;
    best_pages = pages;
  }
  return best;
}

// The slot holds its first `length` tokens only; the pages behind them are there to be reused.
void KvSlots::forget(int slot, int length) {
  counts_.evicted_tokens += static_cast<uint64_t>(held(slot) - length);
  prefixes_.truncate(slot, length);
}

Taken KvSlots::take(std::span<const int32_t> tokens, int pages) {
  const bool is_kept = keeps_prefixes_ && !tokens.empty();
  // Copies that were decided on come first; they are made within this step.
  if (reserved_ > 0 && pages_promised() + reserved_ + pages > pages_max()) return {};
  Found found = is_kept ? find(tokens.first(tokens.size() - 1), pages) : Found{};
  int slot = found.is_adopted ? found.slot : choose_idle(found.slot < 0, found.slot);
  if (slot < 0 && found.slot >= 0 && !at(found.slot).is_taken && at(found.slot).readers == 0) {
    slot = found.slot;
    found.is_adopted = true;
  }
  if (slot < 0) return {};

  Slot& taken = at(slot);
  assert(!taken.is_taken && taken.source < 0);
  taken.is_taken = true;
  taken.is_kept = is_kept;
  taken.is_open = found.is_adopted;
  taken.promised = pages;
  taken.used = ++uses_;
  promised_ += pages;
  forget(slot, found.is_adopted ? found.length : 0);
  if (found.length > 0) {
    counts_.hits++;
    counts_.hit_tokens += static_cast<uint64_t>(found.length);
  }
  if (found.length == 0 || found.is_adopted) {
    count_read(slot, found.length);
    trim(slot, static_cast<int>(tokens.size()));
    return {slot, found.length};
  }

  Slot& source = at(found.slot);
  taken.source = found.slot;
  taken.reserved = source.is_taken ? 0 : copies(found.length);
  reserved_ += taken.reserved;
  source.readers++;
  source.pinned = std::max(source.pinned, found.length);
  source.used = ++uses_;
  prefixes_.extend(slot, tokens.first(static_cast<size_t>(found.length)));
  return {slot, found.length};
}

}  // namespace millrace
