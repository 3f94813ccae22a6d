// Who runs next: random histories, in which every promise of the schedule is checked at every step.
#include "schedule/schedule.h"

#include <algorithm>
#include <map>
#include <set>

#include "support/random.h"
#include "support/test.h"

using namespace millrace;

namespace {

struct Sent {
  int prompt, tokens_max;
  int computed = 0, sampled = 0, slot = -1;
};

// Plays requests through a schedule as the engine would, and knows what must hold.
struct World {
  ScheduleLimits limits;
  std::set<int> free_slots;
  Schedule schedule;
  std::map<uint32_t, Sent> live;
  std::vector<uint32_t> queue;  // in order of arrival
  uint32_t next = 1;

  World(const ScheduleLimits& given, int slots)
      : limits(given), schedule(limits, [this](int) {
          if (free_slots.empty()) return -1;
          const int slot = *free_slots.begin();
          free_slots.erase(slot);
          return slot;
        }) {
    for (int slot = 0; slot < slots; slot++) free_slots.insert(slot);
  }

  int pages(const Sent& sent) const { return (sent.prompt + sent.tokens_max + limits.page_tokens - 1) / limits.page_tokens; }

  void add(int prompt, int tokens_max) {
    const uint32_t request = next++;
    const Sent sent{prompt, tokens_max};
    const bool fits = pages(sent) <= limits.pages_max, room = static_cast<int>(queue.size()) < limits.waiting_max;
    CHECK_EQUAL(schedule.add(request, prompt, tokens_max), fits && room);
    CHECK_EQUAL(schedule.fits_ever(prompt, tokens_max), fits);
    if (!fits || !room) return;
    live.emplace(request, sent);
    queue.push_back(request);
  }

  void remove(uint32_t request) {
    const int slot = schedule.remove(request);
    CHECK_EQUAL(slot, live.at(request).slot);
    if (slot >= 0) free_slots.insert(slot);
    live.erase(request);
    std::erase(queue, request);
  }

  // One step; returns whether there was anything to do.
  bool step() {
    std::vector<uint32_t> admitted;
    const std::vector<Row> rows = schedule.plan(admitted);
    for (const uint32_t request : admitted) {
      REQUIRE(!queue.empty() && request == queue.front(), "request ", request, " was admitted out of turn");
      queue.erase(queue.begin());
    }
    int decodes = 0, prefilled = 0, promised = 0;
    bool decoding = true;
    std::set<int> slots;
    for (const Row& row : rows) {
      Sent& sent = live.at(row.request);
      if (sent.slot < 0) sent.slot = row.slot;
      CHECK_EQUAL(row.slot, sent.slot);
      CHECK(slots.insert(row.slot).second, "slot ", row.slot, " twice in a step");
      const int left = sent.prompt + sent.sampled - sent.computed;
      CHECK_EQUAL(row.first, sent.computed);
      CHECK(row.count >= 1 && row.count <= left, row.count, " of ", left);
      CHECK_EQUAL(row.samples, row.count == left ? 1 : 0);
      if (row.count == 1 && left == 1) {
        CHECK(decoding, "a decode behind a prompt");
        decodes++;
      } else {
        decoding = false;
        prefilled += row.count;
      }
    }
    CHECK(prefilled <= (decodes > 0 ? limits.mixed_tokens_max : limits.step_tokens_max), prefilled, " of a prompt beside ", decodes, " decodes");
    for (const auto& [request, sent] : live)
      if (sent.slot >= 0 || std::find(admitted.begin(), admitted.end(), request) != admitted.end()) promised += pages(sent);
    CHECK(promised <= limits.pages_max, promised, " pages promised of ", limits.pages_max);
    CHECK_EQUAL(schedule.waiting(), queue);
    CHECK_EQUAL(schedule.running_count(), static_cast<int>(live.size() - queue.size()));
    for (const Row& row : rows) settle(row);
    return !rows.empty();
  }

  void settle(const Row& row) {
    schedule.settle(row, row.samples);
    Sent& sent = live.at(row.request);
    sent.computed += row.count;
    sent.sampled += row.samples;
    if (sent.sampled == sent.tokens_max) remove(row.request);
  }
};

}  // namespace

TEST("random histories keep every promise, and all that was taken drains") {
  test::Random random;
  for (int round = 0; round < 150; round++) {
    World world({.waiting_max = random.between(1, 20), .pages_max = random.between(1, 40), .page_tokens = 16 * random.between(1, 4),
                 .step_tokens_max = random.between(1, 64), .mixed_tokens_max = random.between(1, 16)},
                random.between(1, 6));
    for (int step = 0; step < 150; step++) {
      while (random.chance(0.4)) world.add(random.between(1, 200), random.between(1, 30));
      if (!world.live.empty() && random.chance(0.1)) {
        auto victim = world.live.begin();
        std::advance(victim, random.between(0, static_cast<int>(world.live.size()) - 1));
        // One that was admitted but not yet planned has a slot that only the schedule knows; let it be seen first.
        if (victim->second.slot >= 0 || std::find(world.queue.begin(), world.queue.end(), victim->first) != world.queue.end()) world.remove(victim->first);
      }
      world.step();
    }
    int steps = 0;
    while (!world.live.empty() && steps++ < 100000) REQUIRE(world.step(), world.live.size(), " requests are left, and nothing is planned");
    CHECK(world.live.empty());
    CHECK_EQUAL(world.schedule.running_count() + world.schedule.waiting_count(), 0);
  }
}

TEST("a long prompt goes in slices, smaller ones while somebody decodes") {
  World world({.pages_max = 100, .step_tokens_max = 32, .mixed_tokens_max = 8}, 4);
  std::vector<uint32_t> admitted;
  world.add(100, 5);
  REQUIRE(world.step());
  CHECK_EQUAL(world.live.at(1).computed, 32);
  world.add(1, 50);  // its one token makes it a decode from the start
  REQUIRE(world.step());
  CHECK_EQUAL(world.live.at(1).computed, 40);
  CHECK_EQUAL(world.live.at(2).sampled, 1);
}

TEST("whoever does not fit waits, and nobody overtakes") {
  World world({.pages_max = 4, .page_tokens = 16}, 4);
  world.add(16, 16);  // 2 pages
  world.add(40, 8);   // 3 pages: not while the first runs
  world.add(8, 8);    // 1 page: would fit, but is not first
  world.step();
  CHECK_EQUAL(world.schedule.waiting(), (std::vector<uint32_t>{2, 3}));
  world.remove(1);
  world.step();
  CHECK(world.schedule.waiting().empty());
}

TEST("an unknown request is removed without harm") {
  World world({.pages_max = 4}, 1);
  CHECK_EQUAL(world.schedule.remove(99), -1);
  std::vector<uint32_t> admitted;
  CHECK(world.schedule.plan(admitted).empty());
}
