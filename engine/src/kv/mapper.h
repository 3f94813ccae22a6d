// Changes of what is behind which place, made in the order in which they were asked for: gathered first, and then made by a thread of its own
// in one go, or by whoever cannot wait for it. On a GPU a change takes tens of microseconds and holds up the kernels that run, many of them at
// once hardly more than one.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "pages.h"

namespace millrace {

struct KvChange {
  enum class Kind : uint8_t { attach, protect, detach, copy } kind = Kind::attach;
  int64_t place = 0;      // of copy: whose bytes,
  int64_t copied_to = 0;  // and which place is to have them
  int page = 0;           // of attach and copy
  int count = 1;          // of detach: places in a row
  bool is_writable = false;
};

Status make_change(KvPages& pages, const KvChange& change);

// All but the thread is for one thread: the owner's.
class KvMapper {
 public:
  explicit KvMapper(KvPages& pages);
  // Makes what is left.
  ~KvMapper();

  // Gathers a change. Returns its number: they count up from 1.
  uint64_t add(const KvChange& change);
  // Has what was gathered made.
  void start();
  // Waits until that change and all before it are made.
  void await(uint64_t number);
  // Why a place has not what was last put behind it, if that failed.
  Status status_of(int64_t place);

 private:
  bool make_next();

  KvPages& pages_;
  std::vector<KvChange> gathered_;
  uint64_t added_ = 0;
  std::atomic<uint64_t> made_{0};

  std::mutex making_;  // held while a change is taken and made: so they are made in order
  std::mutex mutex_;   // guards what follows
  std::condition_variable wake_;
  std::deque<KvChange> queue_;
  std::map<int64_t, Status> failed_;  // by place
  bool is_ending_ = false;
  std::thread thread_;
};

}  // namespace millrace
