// Memory for the benchmark of paging: physical pages in a pool, and the two ways to reach them.
#pragma once

#include <cstdint>
#include <vector>

#include "kv/layout.h"
#include "random.h"

namespace millrace::bench {

// What backs a pool: a memory file in pages of 4 KiB, as KvMemory has it; or anonymous memory, for which the kernel is asked to use pages
// of 2 MiB, as only a pool that is never mapped piece by piece can have them.
enum class Backing { file, huge };

// KV pages of one layout one after another, all of them in memory. The first `layers` layers of each are filled with random float16 below 1.
class Pool {
 public:
  Pool(Backing backing, const KvLayout& layout, int layers, int64_t pages);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  bool ready() const { return bytes_ != nullptr; }
  const KvLayout& layout() const { return layout_; }
  int64_t pages() const { return pages_; }
  const uint8_t* page(int64_t index) const { return bytes_ + index * layout_.page_bytes; }
  int64_t size() const { return pages_ * layout_.page_bytes; }
  int file() const { return file_; }    // -1: it has none
  int64_t huge_bytes() const;           // what of it lies in pages of 2 MiB, as the kernel says
  // Numbers of pages at random, each once.
  std::vector<int64_t> deal(int64_t count, Random& random) const;

 private:
  KvLayout layout_;
  int64_t pages_;
  int file_ = -1;
  uint8_t* bytes_ = nullptr;
};

// The pages of a pool's file put one after another at addresses of their own, as KvMemory does it.
class Range {
 public:
  Range(const Pool& pool, const std::vector<int64_t>& pages);
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

  const uint8_t* bytes() const { return bytes_; }  // null where the machine did not give it

 private:
  uint8_t* bytes_ = nullptr;
  size_t size_;
};

// Reads so much else that neither caches nor the TLB hold anything of before.
void forget();

}  // namespace millrace::bench
