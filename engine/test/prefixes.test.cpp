// The radix tree against a list of token strings: who holds what, through any history.
#include "kv/prefixes.h"

#include <algorithm>
#include <vector>

#include "support/random.h"
#include "support/test.h"

using namespace millrace;

namespace {

using Tokens = std::vector<int32_t>;

struct Match {
  int slot, length;
  bool operator==(const Match&) const = default;
};

std::vector<Match> matches(const Prefixes& prefixes, const Tokens& tokens) {
  std::vector<Match> all;
  prefixes.match(tokens, [&](int slot, int length) {
    all.push_back({slot, length});
    return true;
  });
  return all;
}

int common(const Tokens& a, const Tokens& b) {
  return static_cast<int>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

void sort(std::vector<Match>& all) {
  std::sort(all.begin(), all.end(), [](const Match& a, const Match& b) { return a.length != b.length ? a.length > b.length : a.slot < b.slot; });
}

}  // namespace

TEST("the longest match comes first, and whoever visits may stop there") {
  Prefixes prefixes(4);
  prefixes.extend(0, Tokens{1, 2, 3, 4, 5});
  prefixes.extend(1, Tokens{1, 2, 9});
  prefixes.extend(2, Tokens{1, 2, 3, 4});
  const std::vector<Match> found = matches(prefixes, {1, 2, 3, 4, 7});
  REQUIRE(found.size() == 3);
  CHECK(found[0].length == 4 && found[1].length == 4 && found[2] == (Match{1, 2}));
  CHECK(matches(prefixes, {2, 3}).empty() && matches(prefixes, {}).empty());
  int visited = 0;
  prefixes.match(Tokens{1, 2}, [&](int, int) { return ++visited < 2; });
  CHECK_EQUAL(visited, 2);
}

TEST("a sequence that grows by one token at a time is one edge, and what nobody holds is forgotten") {
  Prefixes prefixes(3);
  for (int32_t token = 0; token < 1000; token++) prefixes.extend(0, Tokens{token});
  CHECK_EQUAL(prefixes.node_count(), 2);
  prefixes.extend(1, Tokens{0, 1, 2});
  CHECK_EQUAL(prefixes.node_count(), 2);
  prefixes.extend(1, Tokens{77});
  CHECK_EQUAL(prefixes.node_count(), 4);
  CHECK_EQUAL(prefixes.token_count(), int64_t{1001});
  prefixes.remove(0);
  CHECK_EQUAL(prefixes.token_count(), int64_t{4});
  CHECK_EQUAL(prefixes.node_count(), 2);
  prefixes.truncate(1, 2);
  CHECK_EQUAL(prefixes.token_count(), int64_t{2});
  prefixes.remove(1);
  CHECK_EQUAL(prefixes.node_count(), 1);
}

// Few different tokens, so that paths meet and part all the time.
TEST("random histories hold what a list of strings holds, in no more nodes and tokens than they need") {
  test::Random random;
  for (int round = 0; round < 60; round++) {
    const int slots = random.between(1, 12), alphabet = random.between(1, 3);
    Prefixes prefixes(slots);
    std::vector<Tokens> held(static_cast<size_t>(slots));
    for (int step = 0; step < 400; step++) {
      const int slot = random.between(0, slots - 1);
      Tokens& own = held[static_cast<size_t>(slot)];
      if (random.chance(0.3)) {
        const int length = random.between(0, static_cast<int>(own.size()));
        prefixes.truncate(slot, length);
        own.resize(static_cast<size_t>(length));
      } else {
        const Tokens more = random.tokens(random.between(1, random.chance(0.8) ? 2 : 30), alphabet);
        prefixes.extend(slot, more);
        own.insert(own.end(), more.begin(), more.end());
      }
      CHECK_EQUAL(prefixes.length(slot), static_cast<int>(own.size()));

      const Tokens asked = random.chance(0.5) ? random.tokens(random.between(0, 40), alphabet) : held[static_cast<size_t>(random.between(0, slots - 1))];
      std::vector<Match> found = matches(prefixes, asked), expected;
      for (size_t i = 1; i < found.size(); i++) CHECK(found[i].length <= found[i - 1].length, "match ", i, " is longer than the one before");
      for (int each = 0; each < slots; each++)
        if (const int length = common(asked, held[static_cast<size_t>(each)]); length > 0) expected.push_back({each, length});
      sort(found);
      sort(expected);
      REQUIRE(found == expected, "round ", round, " step ", step, ": ", found.size(), " of ", expected.size());

      if (step % 16 != 0) continue;
      // Distinct prefixes, counted one by one, are the tree's tokens.
      std::vector<Tokens> distinct;
      for (const Tokens& each : held)
        for (size_t length = 1; length <= each.size(); length++) distinct.emplace_back(each.begin(), each.begin() + static_cast<std::ptrdiff_t>(length));
      std::sort(distinct.begin(), distinct.end());
      distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
      CHECK_EQUAL(prefixes.token_count(), static_cast<int64_t>(distinct.size()));
      CHECK(prefixes.node_count() <= 2 * slots + 1, prefixes.node_count(), " nodes for ", slots, " slots");
    }
  }
}
