// Virtual KV memory: address ranges reserved once, physical pages mapped into them as sequences grow. Which page is behind which address, and
// who shares it, is known here; a kind of memory (pages.h) makes the changes: at once, or on a thread of its own ahead of need. Not
// thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "mapper.h"
#include "pages.h"
#include "status.h"

namespace millrace {

class KvMemory {
 public:
  struct Shape {
    int ranges = 0, pages_a_range = 0, pages_max = 0;
    int64_t places() const { return int64_t{ranges} * pages_a_range; }
  };

  // Over pages for shape.places() places. Where it maps ahead, changes are gathered, and `await` comes before what they map is touched.
  KvMemory(std::unique_ptr<KvPages> pages, const Shape& shape, bool maps_ahead = false);

  // A range's first byte. Only its mapped pages may be touched, and only those that are its own written.
  uint8_t* base(int range) const { return pages_->address(place_of(range, 0)); }

  // Puts a physical page of its own behind page `page` of a range: a free one, or a new one while fewer than pages_max exist.
  Status map(int range, int page);
  // Puts the physical page behind (from_range, from_page) behind (range, page) too: neither may write it now. It lives until its last
  // mapping goes.
  Status alias(int range, int page, int from_range, int from_page);
  // Puts a physical page of its own there, as map does, with the same bytes as the one behind (from_range, from_page).
  Status copy(int range, int page, int from_range, int from_page);
  // Makes the page writable: as it is where nobody else maps it, otherwise it is exchanged for a copy, which takes a free page.
  Status own(int range, int page);
  // Takes so many pages in a row away from this range, in one call; each physical page is free once nobody maps it.
  void unmap(int range, int page, int count = 1);

  // As map, but nothing waits for it before the page is made the range's own.
  Status map_ahead(int range, int page);
  bool maps_ahead() const { return mapper_ != nullptr; }
  // Has what was mapped ahead made by the thread, all of it at once.
  void start();
  // Waits for all changes but those, and for those of them that were made somebody's own. An error: one of these failed, and its place has not
  // what it should have, which nothing mends.
  Status await();

  // How many places map the physical page that is there, and whether that is more than this one.
  int users(int range, int page) const { return users_[static_cast<size_t>(at(range, page).page)]; }
  bool is_shared(int range, int page) const { return users(range, page) > 1; }
  // The physical page that is there.
  int physical(int range, int page) const { return at(range, page).page; }

  int pages_mapped() const { return static_cast<int>(users_.size() - free_.size()); }  // physical pages behind at least one address
  int pages_max() const { return pages_max_; }  // fewer from the moment on when no more can be made
  int64_t places_mapped() const { return places_mapped_; }  // places with a page behind them
  int64_t places_max() const { return pages_->places_max(); }  // of which a process can have no more

 private:
  static constexpr int none = -1;
  struct Place {
    int page = none;
    bool is_writable = false;
    uint64_t change = 0;  // the last one of it, by the mapper's count
  };

  int64_t place_of(int range, int page) const { return int64_t{range} * shape_.pages_a_range + page; }
  Place& at(int range, int page) { return places_[static_cast<size_t>(place_of(range, page))]; }
  const Place& at(int range, int page) const { return places_[static_cast<size_t>(place_of(range, page))]; }

  Status find_free();
  Status change(Place& of, const KvChange& change);
  Status attach(int range, int page, int physical, bool is_writable);
  Status protect(int range, int page, bool is_writable);
  void need(int range, int page);

  const Shape shape_;
  int pages_max_;
  std::unique_ptr<KvPages> pages_;
  std::vector<Place> places_;  // [range][page]
  std::vector<int> users_;     // [physical page] -> places
  std::vector<int> free_;      // physical pages behind no place; who takes one takes the last
  int64_t places_mapped_ = 0;
  std::vector<int64_t> needed_;  // places that were asked for since the last await
  uint64_t needed_changes_ = 0;  // changes up to this one are awaited
  std::unique_ptr<KvMapper> mapper_;  // after the pages: it ends first
};

// A CPU's.
Result<std::unique_ptr<KvMemory>> reserve_kv_memory(const KvMemory::Shape& shape, int64_t page_bytes, bool maps_ahead = false);

}  // namespace millrace
