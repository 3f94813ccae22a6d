// A loaded model without the engine's thread: a test plans the steps itself and reads every position's logits.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "assemble.h"
#include "test.h"

namespace millrace::test {

// Logits of one position, [vocabulary].
using Position = std::vector<float>;

class Bench {
 public:
  explicit Bench(const EngineOptions& options) {
    auto assembled = assemble(options);
    REQUIRE(assembled.ok(), assembled.message());
    parts_ = assembled.take();
  }

  struct Part {
    int sequence;
    int count;
  };

  // Adds a sequence that will run through these tokens; returns its number.
  int add(std::vector<int32_t> tokens) {
    const int slot = parts_->slots->take(parts_->schedule_limits.page_need.of(static_cast<int>(tokens.size())));
    REQUIRE(slot >= 0 && parts_->slots->open(slot).ok(), "no slot is left");
    sequences_.push_back({std::move(tokens), slot, 0, {}});
    return static_cast<int>(sequences_.size()) - 1;
  }

  // One step over the next `count` tokens of each part's sequence; their logits are kept.
  void step(const std::vector<Part>& parts) {
    Plan plan;
    int samples = 0;
    for (const Part& part : parts) {
      const Sequence& each = sequences_[static_cast<size_t>(part.sequence)];
      REQUIRE(parts_->slots->grow(each.slot, each.done, part.count).ok());
      plan.rows.push_back({.request = 0, .slot = each.slot, .first = each.done, .count = part.count, .samples = part.count});
      plan.tokens.insert(plan.tokens.end(), each.tokens.begin() + each.done, each.tokens.begin() + each.done + part.count);
      samples += part.count;
    }
    REQUIRE(parts_->slots->await().ok());
    const auto vocabulary = static_cast<size_t>(parts_->info.vocabulary_size);
    std::vector<float> logits(static_cast<size_t>(samples) * vocabulary);
    plan.logits = logits.data();
    parts_->backend->run(plan);
    auto at = logits.begin();
    for (const Part& part : parts) {
      Sequence& each = sequences_[static_cast<size_t>(part.sequence)];
      each.done += part.count;
      for (int i = 0; i < part.count; i++, at += static_cast<std::ptrdiff_t>(vocabulary))
        each.logits.emplace_back(at, at + static_cast<std::ptrdiff_t>(vocabulary));
    }
  }

  int left(int sequence) const {
    const Sequence& each = sequences_[static_cast<size_t>(sequence)];
    return static_cast<int>(each.tokens.size()) - each.done;
  }
  const std::vector<Position>& logits(int sequence) const { return sequences_[static_cast<size_t>(sequence)].logits; }
  // The next one may use its slot, and the pages that it leaves full.
  void end(int sequence) { parts_->slots->give_back(sequences_[static_cast<size_t>(sequence)].slot); }
  const Assembly& parts() const { return *parts_; }

 private:
  struct Sequence {
    std::vector<int32_t> tokens;
    int slot;
    int done;
    std::vector<Position> logits;
  };
  std::unique_ptr<Assembly> parts_;
  std::vector<Sequence> sequences_;
};

}  // namespace millrace::test
