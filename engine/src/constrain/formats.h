// The formats compiled of late, by their text, and the threads they need: compiling happens on the caller's, masks are computed on one of
// their own while the forward runs.
#pragma once

#include <condition_variable>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

#include "grammar.h"

namespace millrace {

class Formats {
 public:
  // Reads the vocabulary when the first format comes. Both outlive it.
  Formats(const Vocabulary& vocabulary, int vocabulary_size) : vocabulary_(vocabulary), vocabulary_size_(vocabulary_size) {}

  // From any thread; others wait while one compiles, but not for what is compiled already.
  Result<std::shared_ptr<const Grammar>> compile(const Format& format);

 private:
  struct Kept {
    Format format;
    std::shared_ptr<const Grammar> grammar;
  };
  std::shared_ptr<const Grammar> find(const Format& format);
  void keep(const Format& format, const std::shared_ptr<const Grammar>& grammar);

  const Vocabulary& vocabulary_;
  int vocabulary_size_;
  std::mutex compiling_;
  std::unique_ptr<GrammarCompiler> compiler_;  // guarded by compiling_
  std::mutex mutex_;                           // guards what follows
  std::list<Kept> kept_;                       // the last used first
  size_t bytes_ = 0;
};

// Fills masks in the order given, on a thread that is started with the first.
class MaskThread {
 public:
  MaskThread() = default;
  ~MaskThread();
  MaskThread(const MaskThread&) = delete;
  MaskThread& operator=(const MaskThread&) = delete;

  // Each one's mask is ready when its wait() returns; none may go before finish() has.
  void begin(std::vector<Constraint*> constraints);
  void finish();

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Constraint*> given_;
  bool is_busy_ = false, stopping_ = false;
  std::thread thread_;
};

}  // namespace millrace
