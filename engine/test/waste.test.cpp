// What pages hold beside tokens, while a large crowd talks: conversations that begin with one of a few prefixes, go on where they ended or are cancelled.
#include <algorithm>
#include <deque>
#include <memory>
#include <vector>

#include "kv/slots.h"
#include "support/random.h"
#include "support/test.h"

using namespace millrace;
using test::Random;

namespace {

constexpr int sequences = 1024, slot_count = sequences + 256, length_max = 1536, pages_max = 28'000, vocabulary = 100'000;
constexpr int prefixes_count = 8, prefix_tokens = 512, step_tokens = 3 * sequences, steps = 1200, steps_first = 400;
constexpr int prepare_steps = 4, prepare_tokens = prepare_steps + 2;  // as the engine does
constexpr double waste_max = 0.04;

using Tokens = std::vector<int32_t>;

// Pages in name alone.
class NamedPages final : public KvPages {
 public:
  uint8_t* address(int64_t) const override { return nullptr; }
  int64_t places_max() const override { return int64_t{1} << 40; }
  Status create(int) override { return Status(); }
  Status attach(int64_t, int, bool) override { return Status(); }
  Status protect(int64_t, bool) override { return Status(); }
  void detach(int64_t, int) override {}
  Status copy(int, int64_t) override { return Status(); }
};

struct Sequence {
  Tokens tokens;
  int answer = 0;  // tokens left until it ends,
  bool goes_on = false;
  int slot = -1, computed = 0;
};

class Crowd {
 public:
  Crowd() : plan_(plan_pages(std::vector<int>(32), 8, 128, KvElement::e4m3, int64_t{2} << 20)), need_(kv_page_need(plan_, step_tokens)) {
    const KvMemory::Shape shape{slot_count, plan_.pages_a_range(length_max), pages_max};
    slots_ = std::make_unique<KvSlots>(std::make_unique<KvMemory>(std::make_unique<NamedPages>(), shape, true), plan_, slot_count);
    for (Tokens& prefix : prefixes_) prefix = random_.tokens(prefix_tokens, vocabulary);
  }

  void step() {
    while (running_.size() + waiting_.size() < sequences) wait(prefixes_[static_cast<size_t>(random_.between(0, prefixes_count - 1))], random_.between(32, 768));
    begin_waiting();
    int left = step_tokens;
    for (size_t i = running_.size(); i-- > 0;) {
      Sequence& each = running_[i];
      const int count = std::min(static_cast<int>(each.tokens.size()) - each.computed, left);
      if (count == 0) continue;
      left -= count;
      REQUIRE(slots_->grow(each.slot, each.computed, count).ok());
      slots_->computed(each.slot, std::span(each.tokens).subspan(static_cast<size_t>(each.computed), static_cast<size_t>(count)));
      each.computed += count;
      if (each.computed == static_cast<int>(each.tokens.size())) go_on(i);
    }
    REQUIRE(slots_->await().ok());
    if (steps_++ % prepare_steps != 0) return;
    std::vector<KvSlots::Ahead> ahead;
    for (const Sequence& each : running_) ahead.push_back({each.slot, std::min(each.computed + prepare_tokens, length_max)});
    slots_->prepare(ahead);
  }

  size_t running() const { return running_.size(); }
  double waste() const { return 1 - static_cast<double>(slots_->bytes_held()) / (static_cast<double>(slots_->pages_mapped()) * static_cast<double>(plan_.page_bytes())); }

 private:
  void wait(Tokens tokens, int more) {
    const Tokens own = random_.tokens(more, vocabulary);
    tokens.insert(tokens.end(), own.begin(), own.end());
    const int answer = std::min(random_.between(64, 256), length_max - static_cast<int>(tokens.size()));
    const bool is_cancelled = random_.chance(0.05);
    waiting_.push_back({.tokens = std::move(tokens), .answer = is_cancelled ? random_.between(1, answer) : answer, .goes_on = !is_cancelled && random_.chance(0.6)});
  }

  // As many prompts as steps keep up with.
  void begin_waiting() {
    int pending = 0;
    for (const Sequence& each : running_) pending += static_cast<int>(each.tokens.size()) - each.computed;
    std::vector<int> opened;
    for (; !waiting_.empty() && pending < step_tokens + static_cast<int>(running_.size()); waiting_.pop_front()) {
      Sequence& next = waiting_.front();
      const int length = static_cast<int>(next.tokens.size()), pages = need_.of(length + next.answer);
      const Taken taken = slots_->pages_promised() + pages <= pages_max ? slots_->take(next.tokens, pages) : Taken{};
      if (taken.slot < 0) break;
      next.slot = taken.slot, next.computed = taken.cached;
      pending += length - taken.cached;
      opened.push_back(taken.slot);
      running_.push_back(std::move(next));
    }
    for (const int slot : opened) REQUIRE(slots_->open(slot).ok());
  }

  // With a token more, or with its next turn.
  void go_on(size_t i) {
    Sequence& each = running_[i];
    each.tokens.push_back(random_.between(0, vocabulary - 1));
    if (each.answer-- > 0) return;
    slots_->give_back(each.slot);
    const Sequence ended = std::move(each);
    if (i + 1 < running_.size()) running_[i] = std::move(running_.back());
    running_.pop_back();
    if (ended.goes_on && ended.tokens.size() + 64 + 256 < length_max) wait(ended.tokens, random_.between(16, 64));
  }

  Random random_;
  KvPlan plan_;
  PageNeed need_;
  std::unique_ptr<KvSlots> slots_;
  std::vector<Tokens> prefixes_ = std::vector<Tokens>(prefixes_count);
  std::vector<Sequence> running_;
  std::deque<Sequence> waiting_;
  uint64_t steps_ = 0;
};

}  // namespace

TEST("of what a crowd of 1,024 sequences of an 8B in 8 bits has mapped in what 80 GB leave, less than 4% ever holds no token") {
  Crowd crowd;
  double largest = 0;
  size_t fewest = sequences;
  for (int step = 0; step < steps; step++) {
    crowd.step();
    if (step < steps_first) continue;
    largest = std::max(largest, crowd.waste());
    fewest = std::min(fewest, crowd.running());
  }
  CHECK(fewest > sequences * 9 / 10, "only ", fewest, " ran at once");
  CHECK(largest < waste_max, largest, " of what is mapped holds nothing");
}
