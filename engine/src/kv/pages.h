// What a kind of KV memory is made of: physical pages, and places in reserved addresses that they are put behind. A CPU's (pages_mmap.cpp)
// are parts of a memfd, a GPU's (pages_cuda.cpp) its driver's allocations. Who has which page is KvMemory's to know (memory.h). All calls
// but `create` and `address` come from one thread at a time.
#pragma once

#include <cstdint>
#include <memory>

#include "status.h"

namespace millrace {

class KvPages {
 public:
  virtual ~KvPages() = default;

  // A place's first byte.
  virtual uint8_t* address(int64_t place) const = 0;
  // A process can have no more places with a page behind them.
  virtual int64_t places_max() const = 0;

  // Makes physical page `page`. They are made in the order of their numbers, from 0.
  virtual Status create(int page) = 0;
  // Puts a physical page behind a place, instead of what is there.
  virtual Status attach(int64_t place, int page, bool is_writable) = 0;
  // Whether what is behind the place may be written there.
  virtual Status protect(int64_t place, bool is_writable) = 0;
  // Takes away what is behind so many places in a row, some of which may have nothing.
  virtual void detach(int64_t place, int count) = 0;
  // Gives a physical page that is behind no place the bytes of the one behind `from`.
  virtual Status copy(int page, int64_t from) = 0;
};

// A CPU's, with addresses for so many places of page_bytes each, a multiple of 4 KiB.
Result<std::unique_ptr<KvPages>> reserve_mmap_pages(int64_t places, int64_t page_bytes);

}  // namespace millrace
