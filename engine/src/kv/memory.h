// Virtual KV memory: address ranges reserved once, physical pages mapped into them as sequences grow. This is the whole of what a
// kind of memory must offer; a CPU's (memory_mmap.cpp) maps a memfd, a GPU's its driver's allocations. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>

#include "status.h"

namespace millrace {

class KvMemory {
 public:
  virtual ~KvMemory() = default;

  // The first byte of a slot's range. Only its mapped pages may be touched.
  virtual uint8_t* base(int slot) const = 0;

  // Puts a physical page of its own behind page `page` of a slot: a free one, or a new one while fewer than pages_max exist.
  virtual Status map(int slot, int page) = 0;
  // Puts the physical page behind (from_slot, from_page) behind (slot, page) too. It lives until its last mapping goes.
  virtual Status alias(int slot, int page, int from_slot, int from_page) = 0;
  // Takes the page away from this slot; the physical page is free once nobody maps it.
  virtual void unmap(int slot, int page) = 0;

  virtual int pages_mapped() const = 0;  // physical pages behind at least one address
  virtual int pages_max() const = 0;
};

// Reserves slots x pages_a_slot pages of addresses over at most pages_max physical pages of page_bytes (a multiple of 4 KiB).
Result<std::unique_ptr<KvMemory>> reserve_kv_memory(int slots, int pages_a_slot, int64_t page_bytes, int pages_max);

}  // namespace millrace
