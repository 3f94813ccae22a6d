// Virtual KV memory: address ranges reserved once, physical pages mapped into them as sequences grow. This is the whole of what a
// kind of memory must offer; a CPU's (memory_mmap.cpp) maps a memfd, a GPU's its driver's allocations. Not thread-safe. All calls of a
// step come between its plan and its run, so that a memory whose calls are slow can gather them.
#pragma once

#include <cstdint>
#include <memory>

#include "status.h"

namespace millrace {

class KvMemory {
 public:
  virtual ~KvMemory() = default;

  // A range's first byte. Only its mapped pages may be touched, and only those that are its own written.
  virtual uint8_t* base(int range) const = 0;

  // Puts a physical page of its own behind page `page` of a range: a free one, or a new one while fewer than pages_max exist.
  virtual Status map(int range, int page) = 0;
  // Puts the physical page behind (from_range, from_page) behind (range, page) too: neither may write it now. It lives until its last
  // mapping goes.
  virtual Status alias(int range, int page, int from_range, int from_page) = 0;
  // Puts a physical page of its own there, as map does, with the same bytes as the one behind (from_range, from_page).
  virtual Status copy(int range, int page, int from_range, int from_page) = 0;
  // Makes the page writable: as it is where nobody else maps it, otherwise it is exchanged for a copy, which takes a free page.
  virtual Status own(int range, int page) = 0;
  // Takes the page away from this range; the physical page is free once nobody maps it.
  virtual void unmap(int range, int page) = 0;

  // Whether some other place maps the physical page too.
  virtual bool is_shared(int range, int page) const = 0;

  virtual int pages_mapped() const = 0;  // physical pages behind at least one address
  virtual int pages_max() const = 0;
  virtual int places_mapped() const = 0;  // places with a page behind them
  virtual int places_max() const = 0;     // of which a process can have no more
};

// Reserves ranges x pages_a_range pages of addresses over at most pages_max physical pages of page_bytes (a multiple of 4 KiB).
Result<std::unique_ptr<KvMemory>> reserve_kv_memory(int ranges, int pages_a_range, int64_t page_bytes, int pages_max);

}  // namespace millrace
