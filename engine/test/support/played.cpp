#include "played.h"

#include <algorithm>
#include <set>

namespace millrace::test {

namespace {

std::vector<int> all_slots(int count) {
  std::vector<int> slots;
  for (int slot = count; slot-- > 0;) slots.push_back(slot);
  return slots;
}

}  // namespace

Played::Played(const ScheduleLimits& given, uint64_t state)
    : limits(given), random(state), slot_of(static_cast<size_t>(given.slots_max)), idle_slots(all_slots(given.slots_max)),
      schedule(limits, [this](uint32_t request, int) { return take_slot(request); }, [this](int slot) { leave_slot(slot); }) {}

Taken Played::take_slot(uint32_t request) {
  is_refused |= disturbances.slot_refusals > 0 && random.chance(disturbances.slot_refusals);
  if (idle_slots.empty() || is_refused) return {};
  Sent& each = sent[request];
  each.slot = idle_slots.back();
  idle_slots.pop_back();
  CHECK_EQUAL(slot_of[each.slot], 0);
  slot_of[each.slot] = static_cast<int>(request) + 1;
  each.computed = finds_prefixes ? random.between(0, each.asked.prompt_tokens + each.sampled - 1) : 0;
  return {each.slot, each.computed};
}

void Played::leave_slot(int slot) {
  Sent& each = sent[static_cast<size_t>(slot_of[slot]) - 1];
  CHECK(each.is_live && each.is_started && each.is_held, "request ", slot_of[slot] - 1, " loses its slot");
  each.slot = -1;
  each.computed = 0;
  each.is_started = each.is_decoding = false;
  each.is_parked = true;
  each.parkings++;
  slot_of[slot] = 0;
  idle_slots.push_back(slot);
  pages_taken -= pages(each.asked);
  parked++;
}

int Played::pages(const Submission& asked) const { return limits.page_need.of(asked.prompt_tokens + asked.tokens_max); }

uint32_t Played::submit(Submission asked, int length) {
  asked.request = static_cast<uint32_t>(sent.size());
  Sent each{.asked = asked, .length = std::min(length, asked.tokens_max), .submitted_us = now_us};
  each.decision = schedule.submit(asked, now_us);
  const Decision& decision = each.decision;
  each.is_live = decision.verdict != Verdict::refused;
  live += each.is_live;
  CHECK_EQUAL(schedule.contains(asked.request), each.is_live);
  if (decision.verdict == Verdict::accepted) {
    CHECK_EQUAL(decision.ttft_us, asked.deadlines.ttft_us);
    CHECK_EQUAL(decision.itl_us, asked.deadlines.itl_us);
  }
  if (decision.verdict == Verdict::queued) CHECK(decision.wait_us <= asked.deadlines.wait_us_max, decision.wait_us);
  if (decision.verdict == Verdict::refused && pages(asked) <= limits.pages_max) CHECK(decision.retry_after_us > 0);
  sent.push_back(each);
  return asked.request;
}

void Played::remove(uint32_t request, bool is_ended) {
  Sent& each = sent[request];
  REQUIRE(each.is_live, "request ", request, " ends twice");
  const int slot = schedule.remove(request, is_ended, now_us);
  CHECK_EQUAL(slot >= 0, each.is_started);
  if (each.slot >= 0) CHECK_EQUAL(slot, each.slot);
  each.is_live = false;
  held -= each.is_held;
  each.is_held = false;
  each.ended_us = now_us;
  live--;
  if (slot < 0) return;
  CHECK_EQUAL(slot_of[slot], static_cast<int>(request) + 1);
  slot_of[slot] = 0;
  idle_slots.push_back(slot);
  pages_taken -= pages(each.asked);
}

void Played::hold(uint32_t request, bool is_held) {
  Sent& each = sent[request];
  if (!each.is_live) return;
  held += static_cast<int>(is_held) - static_cast<int>(each.is_held);
  each.is_held = is_held;
  each.is_parked &= is_held;
  schedule.hold(request, is_held, now_us);
}

// As the engine does where a row's pages cannot be mapped.
void Played::lose_rows(std::vector<Row>& rows) {
  std::erase_if(rows, [this](const Row& row) {
    const bool is_lost = disturbances.lost_rows > 0 && random.chance(disturbances.lost_rows);
    if (is_lost) remove(row.request, false);
    return is_lost;
  });
}

int64_t Played::time_of(const StepLoad& load) {
  const double us = 400 + 20.0 * load.rows + token_us * load.tokens + 0.01 * static_cast<double>(load.context);
  const double noise = 1 - disturbances.noise + 2 * disturbances.noise * random.uniform();
  const bool is_stalled = disturbances.stalls > 0 && random.chance(disturbances.stalls);
  return static_cast<int64_t>(slowness * us * noise) + (is_stalled ? disturbances.stall_us : 0);
}

bool Played::step() {
  started.clear();
  is_refused = false;
  std::vector<Row> rows = schedule.plan(now_us, started);
  for (const uint32_t request : started) {
    CHECK(sent[request].is_live && !sent[request].is_started, "request ", request, " got a slot in vain");
    sent[request].is_started = true;
    pages_taken += pages(sent[request].asked);
  }
  StepLoad load = check(rows);
  step_tokens = load.tokens;
  if (rows.empty()) return false;
  lose_rows(rows);
  load = {};
  for (const Row& row : rows) load.add(row.first, row.count, row.samples);

  const int64_t begun_us = now_us;
  now_us += time_of(load);
  schedule.measured(rows, begun_us, now_us, 0);
  for (const Row& row : rows) {
    schedule.settle(row, row.samples, now_us);
    Sent& each = sent[row.request];
    each.computed += row.count;
    each.sampled += row.samples;
    each.is_decoding |= row.samples > 0;
    tokens += static_cast<uint64_t>(row.samples);
    if (each.sampled == 1 && row.samples == 1) each.first_us = now_us;
    if (each.sampled == each.length) remove(row.request, true);
  }
  return true;
}

StepLoad Played::check(const std::vector<Row>& rows) {
  StepLoad load;
  std::set<uint32_t> seen;
  bool prompts = false;
  for (const Row& row : rows) {
    Sent& each = sent[row.request];
    REQUIRE(each.is_live, "request ", row.request, " is planned after its end");
    CHECK(seen.insert(row.request).second, "request ", row.request, " has two rows in a step");
    const int left = each.asked.prompt_tokens + each.sampled - each.computed;
    CHECK(row.first == each.computed && row.count >= 1 && row.count <= left, row.count, " positions from ", row.first, " of ", left);
    CHECK_EQUAL(row.samples, row.count == left ? 1 : 0);
    CHECK(!each.is_decoding || !prompts, "a decode behind a prompt");
    prompts |= !each.is_decoding;
    CHECK(each.is_started && !each.is_held, "request ", row.request, " is planned while it is held");
    CHECK_EQUAL(slot_of[row.slot], static_cast<int>(row.request) + 1);
    load.add(row.first, row.count, row.samples);
  }
  CHECK(load.tokens <= std::max(limits.step_tokens_max, schedule.running_count()), load.tokens, " positions in a step");
  CHECK(pages_taken <= limits.pages_max, pages_taken, " pages taken of ", limits.pages_max);
  return load;
}

void Played::drain() {
  disturbances = {};
  for (uint32_t request = 0; held > 0; request++) hold(request, false);
  for (int idle = 0; live > 0;) {
    idle = step() ? 0 : idle + 1;
    REQUIRE(idle < 3, live, " requests are left, and nothing is planned");
  }
  CHECK_EQUAL(schedule.running_count() + schedule.waiting_count(), 0);
  CHECK_EQUAL(static_cast<int>(idle_slots.size()), limits.slots_max);
  CHECK_EQUAL(pages_taken, 0);
}

}  // namespace millrace::test
