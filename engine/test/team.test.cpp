// The team of threads: every index once, in every piece of work, however many threads share however few cores.
#include "base/team.h"

#include <atomic>
#include <new>

#include "base/machine.h"
#include "support/random.h"
#include "support/test.h"

using namespace millrace;

namespace {

// Runs `pieces` pieces of work of random size and counts how often each index was visited.
void cover(int threads, int pieces, test::Random& random) {
  Team team(threads);
  CHECK_EQUAL(team.size(), threads);
  constexpr int size_max = 200;
  std::vector<std::atomic<int>> visits(size_max);
  std::atomic<int> strangers{0};
  for (int piece = 0; piece < pieces; piece++) {
    const int count = random.between(0, size_max), chunk = random.between(1, 40);
    for (auto& each : visits) each = 0;
    team.parallel(count, chunk, [&](int64_t begin, int64_t end, int rank) {
      if (rank < 0 || rank >= threads || begin >= end) strangers++;
      for (int64_t i = begin; i < end; i++) visits[static_cast<size_t>(i)]++;
    });
    for (int i = 0; i < size_max; i++) CHECK_EQUAL(visits[static_cast<size_t>(i)].load(), i < count ? 1 : 0);
  }
  CHECK_EQUAL(strangers.load(), 0);
}

}  // namespace

TEST("each index of each piece of work is visited once, by 1 to 4 threads") {
  test::Random random;
  for (int threads = 1; threads <= 4; threads++) cover(threads, 500, random);
}

TEST("more threads than any machine of ours has cores still finish") {
  test::Random random;
  cover(24, 50, random);
}

TEST("work of more chunks than can be numbered is cut into larger ones") {
  Team team(2);
  constexpr int64_t count = (1 << 20) + 12345;
  std::atomic<int64_t> sum{0}, calls{0};
  team.parallel(count, 1, [&](int64_t begin, int64_t end, int) {
    sum += (begin + end - 1) * (end - begin) / 2;
    calls++;
  });
  CHECK_EQUAL(sum.load(), count * (count - 1) / 2);
  CHECK(calls.load() < 1 << 20, calls.load());
}

// The promise that lets operators follow one another without locks of their own; ThreadSanitizer checks it.
TEST("a piece of work sees all that the one before it wrote") {
  Team team(3);
  std::vector<int> values(500), sums(500);
  for (int run = 0; run < 100; run++) {
    team.parallel(500, 7, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) values[static_cast<size_t>(i)] = run;
    });
    team.parallel(500, 11, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) sums[static_cast<size_t>(i)] += values[static_cast<size_t>(499 - i)];
    });
  }
  for (const int sum : sums) CHECK_EQUAL(sum, 99 * 100 / 2);
}

// What a thread keeps by its rank belongs to it alone as long as the piece of work lasts.
TEST("no two threads share a rank") {
  Team team(4);
  std::vector<int> of_rank(4);  // not atomic: ThreadSanitizer sees who shares
  for (int run = 0; run < 100; run++)
    team.parallel(64, 1, [&](int64_t, int64_t, int rank) { of_rank[static_cast<size_t>(rank)]++; });
  CHECK_EQUAL(of_rank[0] + of_rank[1] + of_rank[2] + of_rank[3], 64 * 100);
}

TEST("teams that never worked, or work no more, end at once") {
  for (int round = 0; round < 20; round++) {
    Team idle(4), busy(3);
    std::atomic<int> done{0};
    busy.parallel(10, 1, [&](int64_t, int64_t, int) { done++; });
    CHECK_EQUAL(done.load(), 10);
  }
}

TEST("the machine has at least a thread and some memory, and AVX-512 only with AVX2") {
  const Machine machine = inspect_machine();
  CHECK(machine.threads >= 1, machine.threads);
  CHECK(machine.memory_free_bytes > 0);
  CHECK(machine.has_avx2 || !machine.has_avx512);
}

TEST("what a body throws reaches the leader when all chunks are done, and the team goes on") {
  for (int threads = 1; threads <= 3; threads++) {
    Team team(threads);
    for (int round = 0; round < 200; round++) {
      std::atomic<int> visits{0};
      bool caught = false;
      try {
        team.parallel(40, 1, [&](int64_t begin, int64_t end, int) {
          visits += static_cast<int>(end - begin);
          if (end - begin == 40 || begin % 7 == round % 7) throw std::bad_alloc();
        });
      } catch (const std::bad_alloc&) {
        caught = true;
      }
      CHECK(caught);
      // Alone, the leader does all in one chunk.
      CHECK_EQUAL(visits.load(), 40);
      int64_t sum = 0;
      team.parallel(10, 10, [&](int64_t begin, int64_t end, int) { sum += end - begin; });
      CHECK_EQUAL(sum, int64_t{10});
    }
  }
}
