// What an answer may look like: a format compiled for one vocabulary, and where one answer stands in it. The library that does the work stays
// behind these two; a build without it has none.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine.h"
#include "format/vocabulary.h"

namespace millrace {

// Tokens that may come next, a bit each; written by one thread and awaited by another.
class TokenMask {
 public:
  explicit TokenMask(int vocabulary_size) : bits_((static_cast<size_t>(vocabulary_size) + 31) / 32) {}

  void begin() { is_ready_.store(false, std::memory_order_relaxed); }
  uint32_t* bits() { return bits_.data(); }
  const uint32_t* bits() const { return bits_.data(); }
  size_t words() const { return bits_.size(); }
  void end() {
    is_ready_.store(true, std::memory_order_release);
    is_ready_.notify_all();
  }

  void wait() const { is_ready_.wait(false, std::memory_order_acquire); }
  bool allows(size_t token) const { return ((bits_[token / 32] >> (token % 32)) & 1u) != 0; }

 private:
  std::vector<uint32_t> bits_;  // [vocabulary / 32, rounded up]
  std::atomic<bool> is_ready_{true};
};

// One answer's place in its grammar.
class Constraint {
 public:
  explicit Constraint(int vocabulary_size) : mask_(vocabulary_size) {}
  virtual ~Constraint() = default;

  TokenMask& mask() { return mask_; }
  // Fills the mask and ends it, whatever happens; where that fails all is allowed, and the next accept() says why it failed.
  void fill() noexcept;
  // One more token of the answer; an error if the grammar has no such.
  Status accept(int32_t token);

 private:
  virtual void fill_bits(uint32_t* bits) = 0;
  virtual bool take(int32_t token) = 0;

  TokenMask mask_;
  Status failure_;
};

// A compiled format; shared by the answers that have it.
class Grammar {
 public:
  virtual ~Grammar() = default;
  virtual std::unique_ptr<Constraint> begin() const = 0;
  virtual size_t bytes() const = 0;
};

class GrammarCompiler {
 public:
  virtual ~GrammarCompiler() = default;
  // Takes from a millisecond to seconds. Called by one thread at a time.
  virtual Result<std::shared_ptr<const Grammar>> compile(const Format& format) = 0;
};

// Whether the build has a library for it; without one the other returns null.
bool has_grammars();
std::unique_ptr<GrammarCompiler> make_grammar_compiler(const Vocabulary& vocabulary, int vocabulary_size);

}  // namespace millrace
