// Sequences whose readers take nothing. Whoever is held keeps its slot while nobody wants it; then it is parked, and what it computed is
// cache like any other: the least recently used goes first, and what is gone is computed anew. On a CPU there is no cheaper place to copy
// pages to than the memory that they are in.
#include "schedule.h"

namespace millrace {

// To promise, the room of those who would be parked counts as free.
Schedule::Room& Schedule::room_taken_by(const Sequence& sequence) {
  return sequence.is_held && leave_slot_ ? held_ : taken_[static_cast<size_t>(sequence.asked.service)];
}

void Schedule::hold(uint32_t request, bool is_held, int64_t now_us) {
  const auto found = by_request_.find(request);
  if (found == by_request_.end()) return;
  Sequence& sequence = sequences_[found->second];
  if (sequence.is_held == is_held) return;
  const Room before = sequence.slot >= 0 ? Room{1, sequence.pages} : Room{};
  Room& from = room_taken_by(sequence);
  sequence.is_held = is_held;
  Room& to = room_taken_by(sequence);
  from.slots -= before.slots;
  from.pages -= before.pages;
  to.slots += before.slots;
  to.pages += before.pages;
  if (is_held) {
    sequence.held_since_us = now_us;
    return;
  }
  sequence.held_us += now_us - sequence.held_since_us;
  if (!sequence.is_parked) return;
  // As one that was promised nothing: what it was promised before went to others when its reader left.
  sequence.is_parked = sequence.is_promised = false;
  sequence.renewals = 0;
  sequence.due_us = now_us + sequence.asked.deadlines.ttft_us;
  waiting_of_[static_cast<size_t>(sequence.asked.service)]++;
  waiting_.insert(turn_of(found->second));
}

// Parks whoever is held for longest until there is a slot, and so many pages. False: not even that makes room.
bool Schedule::make_room(int pages, int64_t now_us) {
  for (;;) {
    const Room all = room_of(ServiceClass::voice);
    if (all.slots - held_.slots >= 1 && all.pages - held_.pages >= pages) return true;
    int longest = -1;
    for (const int index : running_) {
      const Sequence& each = sequences_[index];
      // What was started in this step is not open yet, and what is under way still belongs to its slot.
      const bool is_settled = each.is_held && each.started_us < now_us && each.steps == 0;
      if (is_settled && (longest < 0 || each.held_since_us < sequences_[longest].held_since_us)) longest = index;
    }
    if (longest < 0 || !leave_slot_) return false;
    park(longest);
  }
}

void Schedule::park(int index) {
  Sequence& sequence = sequences_[index];
  leave(index);
  leave_slot_(sequence.slot);
  sequence.slot = -1;
  sequence.computed = sequence.cached = 0;
  sequence.is_decoding = false;
  sequence.is_parked = true;
}

}  // namespace millrace
