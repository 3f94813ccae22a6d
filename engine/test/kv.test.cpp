// KV memory: pages that pad little, physical pages that are never lost or shared by accident.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>

#include "kv/layout.h"
#include "kv/memory.h"
#include "support/random.h"
#include "support/test.h"

using namespace millrace;

namespace {

constexpr int64_t page_bytes = 4096;
constexpr int64_t mebibyte = 1 << 20;

std::unique_ptr<KvMemory> reserve(int ranges, int pages_a_range, int pages_max, bool maps_ahead = false) {
  auto memory = reserve_kv_memory({ranges, pages_a_range, pages_max}, page_bytes, maps_ahead);
  REQUIRE(memory.ok(), memory.message());
  return memory.take();
}

KvPlan plan_of(const std::vector<int>& windows, int kv_heads = 1, int head_dim = 16, KvElement element = KvElement::float16, int64_t granule_bytes = 4096) {
  return plan_pages(windows, kv_heads, head_dim, element, granule_bytes);
}

}  // namespace

TEST("a page holds a multiple of 16 tokens in the fewest granules that pad at most 4%") {
  struct Shape {
    const char* name;
    int layers, kv_heads, head_dim, granules, page_tokens;
  };
  // With granules of 2 MiB and float16; the first three are named in the design.
  for (const Shape& shape : {Shape{"8B", 32, 8, 128, 1, 16}, Shape{"70B", 80, 8, 128, 5, 32}, Shape{"Falcon-180B", 80, 8, 64, 5, 64}}) {
    const KvPlan plan = plan_of(std::vector<int>(static_cast<size_t>(shape.layers)), shape.kv_heads, shape.head_dim, KvElement::float16, 2 * mebibyte);
    CHECK_EQUAL(plan.page_bytes() / (2 * mebibyte), int64_t{shape.granules});
    CHECK_EQUAL(plan.groups[0].page_tokens, shape.page_tokens);
  }
  test::Random random;
  for (int round = 0; round < 500; round++) {
    std::vector<int> windows(static_cast<size_t>(random.between(1, 100)));
    for (int& window : windows) window = random.chance(0.5) ? 0 : 128 * random.between(1, 2);
    const KvPlan plan = plan_of(windows, random.between(1, 16), 16 * random.between(1, 16), static_cast<KvElement>(random.between(0, 4)), int64_t{4096} << random.between(0, 9));
    for (const KvLayout& group : plan.groups) {
      const double used = static_cast<double>(group.page_tokens) * static_cast<double>(group.token_bytes());
      CHECK(group.page_tokens >= 16 && group.page_tokens % 16 == 0);
      CHECK_EQUAL(group.page_bytes, plan.page_bytes());
      CHECK_EQUAL(group.page_bytes % group.granule_bytes, int64_t{0});
      CHECK(used <= static_cast<double>(group.page_bytes) && used >= 0.96 * static_cast<double>(group.page_bytes), used, " of ", group.page_bytes);
      // The last head of the last layer ends within the page.
      CHECK(group.offset(group.layers - 1, true, group.kv_heads - 1) + group.head_bytes() <= group.page_bytes);
    }
  }
}

TEST("on a GPU, a token in 8 bits is half of one in 16, and 32 of an 8B fill its granule") {
  const std::vector<int> windows(32);
  const KvPlan eight = plan_of(windows, 8, 128, KvElement::e4m3, 2 * mebibyte), sixteen = plan_of(windows, 8, 128, KvElement::bfloat16, 2 * mebibyte);
  for (const auto& [plan, tokens] : {std::pair(&eight, 32), std::pair(&sixteen, 16)}) {
    REQUIRE(plan->group_count() == 1);
    CHECK_EQUAL(plan->groups[0].page_tokens, tokens);
    CHECK_EQUAL(plan->page_bytes(), 2 * mebibyte);
    CHECK_EQUAL(tokens * plan->groups[0].token_bytes(), 2 * mebibyte);
  }
}

TEST("each layer has a place of its own, in a group of its window") {
  test::Random random;
  for (int round = 0; round < 200; round++) {
    std::vector<int> windows(static_cast<size_t>(random.between(1, 100)));
    for (int& window : windows) window = 512 * random.between(0, 2);
    const KvPlan plan = plan_of(windows, random.between(1, 16), 16 * random.between(1, 16), KvElement::e4m3, 2 * mebibyte);
    std::vector<int> next(plan.groups.size());
    REQUIRE(plan.layers.size() == windows.size());
    for (size_t layer = 0; layer < windows.size(); layer++) {
      const auto group = static_cast<size_t>(plan.layers[layer].group);
      CHECK_EQUAL(plan.groups[group].window, windows[layer]);
      CHECK_EQUAL(plan.layers[layer].layer, next[group]++);
    }
    for (size_t g = 0; g < plan.groups.size(); g++) CHECK_EQUAL(plan.groups[g].layers, next[g]);
  }
}

TEST("layers of one window are one group, in their order, and those that see more come first") {
  const KvPlan plan = plan_of({128, 0, 128, 1024, 128, 0});
  REQUIRE(plan.group_count() == 3);
  const int windows[] = {0, 1024, 128}, layers[] = {2, 1, 3};
  for (int group = 0; group < 3; group++) {
    CHECK_EQUAL(plan.groups[static_cast<size_t>(group)].window, windows[group]);
    CHECK_EQUAL(plan.groups[static_cast<size_t>(group)].layers, layers[group]);
  }
  const int groups[] = {2, 0, 2, 1, 2, 0}, places[] = {0, 0, 1, 0, 2, 1};
  for (size_t layer = 0; layer < 6; layer++) {
    CHECK_EQUAL(plan.layers[layer].group, groups[layer]);
    CHECK_EQUAL(plan.layers[layer].layer, places[layer]);
  }
}

TEST("heads lie one behind another without gap or overlap") {
  const KvLayout layout = plan_of({0, 0, 0}, 2, 32, KvElement::float16, 65536).groups[0];
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
  memory->base(0)[7] = 42;
  REQUIRE(memory->alias(1, 1, 0, 0).ok());
  CHECK_EQUAL(int{memory->base(1)[page_bytes + 7]}, 42);
  CHECK(memory->is_shared(0, 0) && memory->is_shared(1, 1));
  CHECK_EQUAL(memory->pages_mapped(), 1);
  CHECK_EQUAL(memory->places_mapped(), 2);
  memory->unmap(0, 0);
  CHECK_EQUAL(memory->pages_mapped(), 1);
  CHECK(!memory->is_shared(1, 1));
  REQUIRE(memory->map(2, 0).ok());  // the other page: this one is still in use
  memory->base(2)[7] = 1;
  CHECK_EQUAL(int{memory->base(1)[page_bytes + 7]}, 42);
  REQUIRE(memory->own(1, 1).ok());  // nobody else has it: no copy, and no free page, is needed
  memory->base(1)[page_bytes + 7] = 43;
  memory->unmap(1, 1);
  CHECK_EQUAL(memory->pages_mapped(), 1);
}

// What the protection is for: a process of its own writes, and must not live to say so.
TEST("nobody can write a page that another maps") {
  auto memory = reserve(2, 1, 2);
  REQUIRE(memory->map(0, 0).ok() && memory->alias(1, 0, 0, 0).ok());
  for (const int range : {0, 1}) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      // A sanitizer would report what is meant to happen.
      std::signal(SIGSEGV, SIG_DFL);
      memory->base(range)[0] = 1;
      _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "range ", range, " wrote, status ", status);
  }
}

TEST("a page that is made one's own has its bytes, and leaves the others theirs") {
  auto memory = reserve(2, 2, 3);
  REQUIRE(memory->map(0, 0).ok());
  std::memset(memory->base(0), 5, page_bytes);
  REQUIRE(memory->alias(1, 0, 0, 0).ok() && memory->own(1, 0).ok());
  CHECK(!memory->is_shared(0, 0) && !memory->is_shared(1, 0));
  CHECK(std::memcmp(memory->base(0), memory->base(1), page_bytes) == 0);
  memory->base(1)[9] = 6;
  CHECK_EQUAL(int{memory->base(0)[9]}, 5);
  REQUIRE(memory->own(0, 0).ok());
  memory->base(0)[9] = 7;
  REQUIRE(memory->copy(1, 1, 0, 0).ok());
  memory->base(1)[page_bytes + 10] = 8;
  CHECK_EQUAL(int{memory->base(1)[page_bytes + 9]}, 7);
  CHECK_EQUAL(int{memory->base(0)[10]}, 5);
  CHECK_EQUAL(memory->pages_mapped(), 3);
  REQUIRE(memory->alias(0, 1, 0, 0).ok());
  CHECK_EQUAL(memory->own(0, 1).message(), std::string("no KV page is free"));
}

namespace {

// Against a model in plain containers: what is mapped where, and how many physical pages that takes.
void check_random_history(bool maps_ahead) {
  test::Random random;
  constexpr int ranges = 4, pages = 5, physical = 9;
  auto memory = reserve(ranges, pages, physical, maps_ahead);
  struct Place {
    int page = -1, mark = 0;  // the physical page by the model's count; -1: none
  };
  std::vector<Place> places(ranges * pages);
  int made = 0;
  const auto byte = [&](size_t place) { return memory->base(static_cast<int>(place) / pages) + static_cast<int64_t>(place % pages) * page_bytes; };
  const auto read = [&](size_t place) {
    int mark;
    std::memcpy(&mark, byte(place), sizeof(mark));
    return mark;
  };
  for (int round = 0; round < 4000; round++) {
    const auto place = static_cast<size_t>(random.between(0, ranges * pages - 1)), other = static_cast<size_t>(random.between(0, ranges * pages - 1));
    const int range = static_cast<int>(place) / pages, page = static_cast<int>(place) % pages;
    const int from_range = static_cast<int>(other) / pages, from_page = static_cast<int>(other) % pages;
    std::vector<int> distinct;
    int taken = 0;
    for (const Place& each : places) {
      if (each.page < 0) continue;
      taken++;
      if (std::find(distinct.begin(), distinct.end(), each.page) == distinct.end()) distinct.push_back(each.page);
    }
    REQUIRE(memory->await().ok());
    REQUIRE(memory->pages_mapped() == static_cast<int>(distinct.size()) && memory->places_mapped() == taken, memory->pages_mapped(), " and ", memory->places_mapped());
    const bool has_room = static_cast<int>(distinct.size()) < physical;
    const auto users = [&](size_t which) { return std::count_if(places.begin(), places.end(), [&](const Place& each) { return each.page == places[which].page; }); };
    if (places[place].page >= 0) {
      REQUIRE(read(place) == places[place].mark, "round ", round);
      CHECK_EQUAL(memory->is_shared(range, page), users(place) > 1);
      if (random.chance(0.4)) {
        memory->unmap(range, page);
        places[place] = {};
      } else if (const bool can = users(place) == 1 || has_room; memory->own(range, page).ok()) {
        CHECK(can);
        REQUIRE(memory->await().ok());
        if (users(place) > 1) places[place].page = made++;
        places[place].mark = round;
        std::memcpy(byte(place), &round, sizeof(round));
      } else {
        CHECK(!can);
      }
    } else if (places[other].page >= 0 && random.chance(0.6)) {
      const bool is_copy = random.chance(0.3);
      const bool done = (is_copy ? memory->copy(range, page, from_range, from_page) : memory->alias(range, page, from_range, from_page)).ok();
      CHECK_EQUAL(done, !is_copy || has_room);
      if (done) places[place] = {is_copy ? made++ : places[other].page, places[other].mark};
    } else {
      const bool is_ahead = random.chance(0.5);
      CHECK_EQUAL((is_ahead ? memory->map_ahead(range, page) : memory->map(range, page)).ok(), has_room);
      if (!has_room) continue;
      if (random.chance(0.5)) memory->start();
      if (is_ahead) REQUIRE(memory->own(range, page).ok());
      REQUIRE(memory->await().ok());
      places[place] = {made++, round};
      std::memcpy(byte(place), &round, sizeof(round));
    }
  }
}

// Pages in name alone, of which so many can be attached, and so many made.
class FailingPages final : public KvPages {
 public:
  explicit FailingPages(int attached, int made = 100) : left_(attached), made_(made) {}
  uint8_t* address(int64_t) const override { return nullptr; }
  int64_t places_max() const override { return 100; }
  Status create(int page) override { return page < made_ ? Status() : Status::error("cannot create a KV page"); }
  Status attach(int64_t, int, bool) override { return left_-- > 0 ? Status() : Status::error("cannot map a KV page: out of luck"); }
  Status protect(int64_t, bool) override { return Status(); }
  void detach(int64_t, int) override {}
  Status copy(int, int64_t) override { return Status(); }

 private:
  int left_;
  const int made_;
};

}  // namespace

TEST("random histories of mapping and sharing lose no page and mix up none") { check_random_history(false); }
TEST("random histories of mapping ahead and sharing lose no page and mix up none") { check_random_history(true); }

TEST("a page that cannot be mapped leaves memory as it was, or is told to whoever waits for it") {
  KvMemory at_once(std::make_unique<FailingPages>(1), {1, 4, 4});
  CHECK(at_once.map(0, 0).ok());
  CHECK_EQUAL(at_once.map(0, 1).message(), std::string("cannot map a KV page: out of luck"));
  CHECK(at_once.pages_mapped() == 1 && at_once.places_mapped() == 1);
  KvMemory ahead(std::make_unique<FailingPages>(2), {1, 4, 4}, true);
  CHECK(ahead.map(0, 0).ok() && ahead.map(0, 1).ok() && ahead.await().ok());
  // Of what nobody needs nobody hears.
  CHECK(ahead.map_ahead(0, 2).ok());
  ahead.start();
  CHECK(ahead.own(0, 0).ok() && ahead.await().ok());
  CHECK(ahead.own(0, 2).ok());
  CHECK_EQUAL(ahead.await().message(), std::string("cannot map a KV page: out of luck"));
  ahead.unmap(0, 1, 2);
  CHECK(ahead.own(0, 0).ok() && ahead.await().ok());
  CHECK(ahead.pages_mapped() == 1 && ahead.places_mapped() == 1);
}

TEST("pages in a row are taken away at once, and what is beside them stays") {
  auto memory = reserve(2, 5, 6);
  for (int page = 0; page < 5; page++) {
    REQUIRE(memory->map(0, page).ok());
    memory->base(0)[page * page_bytes] = static_cast<uint8_t>(10 + page);
  }
  REQUIRE(memory->alias(1, 2, 0, 2).ok());
  memory->unmap(0, 1, 3);
  CHECK(memory->pages_mapped() == 3 && memory->places_mapped() == 3);
  CHECK(memory->base(0)[0] == 10 && memory->base(0)[4 * page_bytes] == 14 && memory->base(1)[2 * page_bytes] == 12);
  for (int page = 1; page < 4; page++) REQUIRE(memory->map(0, page).ok());
  CHECK(memory->pages_mapped() == 6 && memory->places_mapped() == 6);
}

TEST("where fewer pages can be made than was thought, those that there are are all, and are used again") {
  KvMemory memory(std::make_unique<FailingPages>(100, 2), {1, 4, 4});
  CHECK(memory.map(0, 0).ok() && memory.map(0, 1).ok());
  CHECK_EQUAL(memory.pages_max(), 4);
  CHECK_EQUAL(memory.map(0, 2).message(), std::string("cannot create a KV page"));
  CHECK_EQUAL(memory.pages_max(), 2);
  memory.unmap(0, 0);
  CHECK(memory.map(0, 2).ok() && memory.pages_mapped() == 2);
}

TEST("addresses that no machine has are refused with what to change") {
  auto memory = reserve_kv_memory({64, 64, 1}, int64_t{1} << 40);
  REQUIRE(!memory.ok());
  CHECK(memory.message().find("choose fewer slots or a shorter context") != std::string::npos, memory.message());
}
