// KV memory: pages that pad little, physical pages that are never lost or shared by accident, slots that reuse before they map.
#include <algorithm>
#include <cstring>

#include "kv/layout.h"
#include "kv/memory.h"
#include "kv/slots.h"
#include "support/random.h"
#include "support/test.h"

using namespace millrace;

namespace {

constexpr int64_t page_bytes = 4096;
constexpr int64_t mebibyte = 1 << 20;

std::unique_ptr<KvMemory> reserve(int slots, int pages_a_slot, int pages_max) {
  auto memory = reserve_kv_memory(slots, pages_a_slot, page_bytes, pages_max);
  REQUIRE(memory.ok(), memory.message());
  return memory.take();
}

// A layout whose page is one granule of 4 KiB and holds 16 tokens.
KvLayout small_layout() { return plan_pages(1, 2, 16, 4, page_bytes); }

struct Slots {
  KvSlots slots;
  Slots(int count, int pages_a_slot, int pages_max) : slots(reserve(count, pages_a_slot, pages_max), small_layout(), count) {}
  // Fills a slot's page with a mark and reads it back later: two slots over one physical page would see each other's.
  void mark(int slot, int page, uint32_t value) { std::memcpy(slots.base(slot) + page * page_bytes, &value, sizeof(value)); }
  uint32_t read(int slot, int page) {
    uint32_t value;
    std::memcpy(&value, slots.base(slot) + page * page_bytes, sizeof(value));
    return value;
  }
};

}  // namespace

TEST("a page holds a multiple of 16 tokens in the fewest granules that pad at most 4%") {
  struct Shape {
    const char* name;
    int layers, kv_heads, head_dim, granules, page_tokens;
  };
  // With granules of 2 MiB and float16; the first three are named in the design.
  for (const Shape& shape : {Shape{"8B", 32, 8, 128, 1, 16}, Shape{"70B", 80, 8, 128, 5, 32}, Shape{"Falcon-180B", 80, 8, 64, 5, 64}}) {
    const KvLayout layout = plan_pages(shape.layers, shape.kv_heads, shape.head_dim, 2, 2 * mebibyte);
    CHECK_EQUAL(layout.page_bytes / (2 * mebibyte), int64_t{shape.granules});
    CHECK_EQUAL(layout.page_tokens, shape.page_tokens);
  }
  test::Random random;
  for (int round = 0; round < 500; round++) {
    const KvLayout layout = plan_pages(random.between(1, 100), random.between(1, 16), 16 * random.between(1, 16), random.chance(0.5) ? 2 : 4,
                                       int64_t{4096} << random.between(0, 9));
    const double used = static_cast<double>(layout.page_tokens) * static_cast<double>(layout.token_bytes());
    CHECK_EQUAL(layout.page_tokens % 16, 0);
    CHECK_EQUAL(layout.page_bytes % layout.granule_bytes, int64_t{0});
    CHECK(used <= static_cast<double>(layout.page_bytes) && used >= 0.96 * static_cast<double>(layout.page_bytes), used, " of ", layout.page_bytes);
    // The last head of the last layer ends within the page.
    CHECK(layout.offset(layout.layers - 1, true, layout.kv_heads - 1) + layout.head_bytes() <= layout.page_bytes);
  }
}

TEST("heads lie one behind another without gap or overlap") {
  const KvLayout layout = plan_pages(3, 2, 32, 2, 65536);
  int64_t expected = 0;
  for (int layer = 0; layer < 3; layer++)
    for (const bool value : {false, true})
      for (int head = 0; head < 2; head++, expected += layout.head_bytes()) CHECK_EQUAL(layout.offset(layer, value, head), expected);
  CHECK_EQUAL(layout.pages_for(0), 0);
  CHECK_EQUAL(layout.pages_for(1), 1);
  CHECK_EQUAL(layout.pages_for(layout.page_tokens), 1);
  CHECK_EQUAL(layout.pages_for(layout.page_tokens + 1), 2);
}

TEST("a mapped page can be written, and a freed one is used again before a new one is made") {
  auto memory = reserve(2, 4, 3);
  CHECK_EQUAL(memory->pages_mapped(), 0);
  for (int page = 0; page < 3; page++) {
    REQUIRE(memory->map(0, page).ok());
    std::memset(memory->base(0) + page * page_bytes, page + 1, page_bytes);
  }
  CHECK_EQUAL(memory->pages_mapped(), 3);
  const Status full = memory->map(1, 0);
  CHECK_EQUAL(full.message(), std::string("no KV page is free"));
  memory->unmap(0, 1);
  CHECK_EQUAL(memory->pages_mapped(), 2);
  REQUIRE(memory->map(1, 3).ok());
  CHECK_EQUAL(int{memory->base(1)[3 * page_bytes]}, 2);  // the same physical page, as it was left
  CHECK_EQUAL(int{memory->base(0)[0]}, 1);
  CHECK_EQUAL(int{memory->base(0)[2 * page_bytes]}, 3);
}

TEST("an alias shows the same bytes, and the page lives until its last mapping goes") {
  auto memory = reserve(3, 2, 2);
  REQUIRE(memory->map(0, 0).ok());
  REQUIRE(memory->alias(1, 1, 0, 0).ok());
  memory->base(0)[7] = 42;
  CHECK_EQUAL(int{memory->base(1)[page_bytes + 7]}, 42);
  CHECK_EQUAL(memory->pages_mapped(), 1);
  memory->unmap(0, 0);
  CHECK_EQUAL(memory->pages_mapped(), 1);
  REQUIRE(memory->map(2, 0).ok());  // the other page: this one is still in use
  memory->base(2)[7] = 1;
  CHECK_EQUAL(int{memory->base(1)[page_bytes + 7]}, 42);
  memory->unmap(1, 1);
  CHECK_EQUAL(memory->pages_mapped(), 1);
}

// Against a model in plain containers: what is mapped where, and how many physical pages that takes.
TEST("random histories of map, alias and unmap lose no page and mix up none") {
  test::Random random;
  constexpr int slots = 4, pages = 5, physical = 9;
  auto memory = reserve(slots, pages, physical);
  std::vector<int> content(slots * pages, -1);  // the mark behind each place, or -1
  const auto write = [&](int place, int mark) { std::memcpy(memory->base(place / pages) + place % pages * page_bytes, &mark, sizeof(mark)); };
  const auto read = [&](int place) {
    int mark;
    std::memcpy(&mark, memory->base(place / pages) + place % pages * page_bytes, sizeof(mark));
    return mark;
  };
  for (int round = 0; round < 3000; round++) {
    const int place = random.between(0, slots * pages - 1), other = random.between(0, slots * pages - 1);
    std::vector<int> marks;
    for (const int mark : content)
      if (mark >= 0 && std::find(marks.begin(), marks.end(), mark) == marks.end()) marks.push_back(mark);
    REQUIRE(memory->pages_mapped() == static_cast<int>(marks.size()), memory->pages_mapped(), " mapped, not ", marks.size());
    if (content[static_cast<size_t>(place)] >= 0) {
      REQUIRE(read(place) == content[static_cast<size_t>(place)], "round ", round);
      if (random.chance(0.6)) {
        memory->unmap(place / pages, place % pages);
        content[static_cast<size_t>(place)] = -1;
      }
    } else if (content[static_cast<size_t>(other)] >= 0 && random.chance(0.4)) {
      REQUIRE(memory->alias(place / pages, place % pages, other / pages, other % pages).ok());
      content[static_cast<size_t>(place)] = content[static_cast<size_t>(other)];
    } else {
      const bool room = static_cast<int>(marks.size()) < physical;
      CHECK_EQUAL(memory->map(place / pages, place % pages).ok(), room);
      if (!room) continue;
      write(place, round);
      content[static_cast<size_t>(place)] = round;
    }
  }
}

TEST("addresses that no machine has are refused with what to change") {
  auto memory = reserve_kv_memory(64, 64, int64_t{1} << 40, 1);
  REQUIRE(!memory.ok());
  CHECK(memory.message().find("choose fewer slots or a shorter context") != std::string::npos, memory.message());
}

TEST("a slot keeps its pages, and the next sequence takes the slot with the most") {
  Slots held(3, 4, 12);
  KvSlots& slots = held.slots;
  const int tokens = slots.layout().page_tokens;
  const int first = slots.take(1), second = slots.take(3);
  REQUIRE(first >= 0 && second >= 0 && first != second);
  REQUIRE(slots.grow(first, tokens).ok() && slots.grow(second, 2 * tokens + 1).ok());
  CHECK_EQUAL(slots.pages_mapped(), 4);
  slots.give_back(first);
  slots.give_back(second);
  CHECK_EQUAL(slots.pages_mapped(), 4);
  CHECK_EQUAL(slots.take(4), second);
  REQUIRE(slots.grow(second, 3 * tokens).ok());
  CHECK_EQUAL(slots.pages_mapped(), 4);  // nothing was mapped anew
}

TEST("no slot is taken twice, and none is there when all are taken") {
  Slots held(3, 1, 3);
  const int a = held.slots.take(1), b = held.slots.take(1), c = held.slots.take(1);
  CHECK(a != b && b != c && a != c);
  CHECK_EQUAL(held.slots.take(1), -1);
  held.slots.give_back(b);
  CHECK_EQUAL(held.slots.take(1), b);
}

TEST("idle slots are stripped only when the pool has nothing free") {
  Slots held(2, 4, 4);
  KvSlots& slots = held.slots;
  const int tokens = slots.layout().page_tokens;
  const int idle = slots.take(3), busy = slots.take(1);
  REQUIRE(slots.grow(idle, 3 * tokens).ok());
  slots.give_back(idle);
  REQUIRE(slots.grow(busy, tokens).ok());
  CHECK_EQUAL(slots.pages_mapped(), 4);
  slots.give_back(busy);
  REQUIRE(slots.take(4) == idle && slots.grow(idle, 4 * tokens).ok());
  CHECK_EQUAL(slots.pages_mapped(), 4);
}

// A short sequence may have taken over a slot with many pages: what it was not promised must not starve the others.
TEST("whoever was promised pages gets them, whatever history the slots have") {
  test::Random random;
  constexpr int count = 5, pages_a_slot = 6, pages_max = 11;
  for (int round = 0; round < 300; round++) {
    Slots held(count, pages_a_slot, pages_max);
    KvSlots& slots = held.slots;
    const int tokens = slots.layout().page_tokens;
    struct Sequence {
      int slot, promised, grown;
      uint32_t mark;
    };
    std::vector<Sequence> running;
    int promised = 0;
    for (int step = 0; step < 60; step++) {
      const int wanted = random.between(1, pages_a_slot);
      if (random.chance(0.4) && promised + wanted <= pages_max && static_cast<int>(running.size()) < count) {
        const int slot = slots.take(wanted);
        REQUIRE(slot >= 0);
        for (const Sequence& other : running) REQUIRE(other.slot != slot);
        running.push_back({slot, wanted, 0, static_cast<uint32_t>(random.next())});
        promised += wanted;
      } else if (!running.empty()) {
        const auto at = static_cast<size_t>(random.between(0, static_cast<int>(running.size()) - 1));
        Sequence& each = running[at];
        if (each.grown < each.promised) {
          const Status status = slots.grow(each.slot, each.grown * tokens + random.between(1, tokens));
          REQUIRE(status.ok(), status.message(), " for page ", each.grown + 1, " of ", each.promised, " promised; all promised are ", promised, " of ", pages_max);
          held.mark(each.slot, each.grown, each.mark + static_cast<uint32_t>(each.grown));
          each.grown++;
        } else {
          promised -= each.promised;
          slots.give_back(each.slot);
          running.erase(running.begin() + static_cast<std::ptrdiff_t>(at));
        }
      }
      for (const Sequence& each : running)
        for (int page = 0; page < each.grown; page++) REQUIRE(held.read(each.slot, page) == each.mark + static_cast<uint32_t>(page));
      REQUIRE(slots.pages_mapped() <= pages_max);
    }
  }
}
