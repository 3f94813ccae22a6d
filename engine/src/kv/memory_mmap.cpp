// KV memory of a CPU: one memfd holds the physical pages, mmap puts them behind the reserved addresses.
#include <sys/mman.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cstring>
#include <vector>

#include "../base/text.h"
#include "memory.h"

namespace millrace {
namespace {

class MmapKvMemory final : public KvMemory {
 public:
  MmapKvMemory(int ranges, int pages_a_range, int64_t page_bytes, int pages_max)
      : pages_a_range_(pages_a_range), page_bytes_(page_bytes), pages_max_(pages_max), bytes_(page_bytes * pages_a_range * ranges),
        places_(static_cast<size_t>(ranges) * pages_a_range) {}

  ~MmapKvMemory() override {
    if (addresses_ != MAP_FAILED) munmap(addresses_, bytes_);
    if (file_ >= 0) close(file_);
  }

  Status reserve() {
    file_ = memfd_create("millrace-kv", MFD_CLOEXEC);
    if (file_ < 0) return Status::error(text("no memory file for KV pages: ", std::strerror(errno)));
    addresses_ = mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (addresses_ == MAP_FAILED)
      return Status::error(text("cannot reserve ", bytes_ >> 20, " MiB of addresses for KV memory (", std::strerror(errno),
                                "); choose fewer slots or a shorter context"));
    behind_.assign(places_, Place());
    return Status();
  }

  uint8_t* base(int range) const override { return static_cast<uint8_t*>(addresses_) + int64_t{range} * pages_a_range_ * page_bytes_; }

  Status map(int range, int page) override {
    assert(at(range, page).physical == none);
    if (Status status = find_free(); !status.ok()) return status;
    return place(range, page, free_.back(), true);
  }

  Status alias(int range, int page, int from_range, int from_page) override {
    assert(at(range, page).physical == none && at(from_range, from_page).physical != none);
    if (Status status = allow_writing(from_range, from_page, false); !status.ok()) return status;
    return place(range, page, at(from_range, from_page).physical, false);
  }

  Status copy(int range, int page, int from_range, int from_page) override {
    assert(at(range, page).physical == none && at(from_range, from_page).physical != none);
    if (Status status = find_free(); !status.ok()) return status;
    if (Status status = fill(free_.back(), address(from_range, from_page)); !status.ok()) return status;
    return place(range, page, free_.back(), true);
  }

  Status own(int range, int page) override {
    assert(at(range, page).physical != none);
    if (!is_shared(range, page)) return allow_writing(range, page, true);
    if (Status status = find_free(); !status.ok()) return status;
    if (Status status = fill(free_.back(), address(range, page)); !status.ok()) return status;
    const int shared = at(range, page).physical;
    if (Status status = place(range, page, free_.back(), true); !status.ok()) return status;
    users_[shared]--;
    places_mapped_--;
    return Status();
  }

  void unmap(int range, int page) override {
    const int physical = at(range, page).physical;
    assert(physical != none);
    // A fresh inaccessible mapping replaces the page: the range stays ours. Shrinking what is mapped cannot run out of memory.
    mmap(address(range, page), page_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    at(range, page) = Place();
    places_mapped_--;
    if (--users_[physical] == 0) free_.push_back(physical);
  }

  bool is_shared(int range, int page) const override { return users_[behind_[index(range, page)].physical] > 1; }

  int pages_mapped() const override { return static_cast<int>(users_.size() - free_.size()); }
  int pages_max() const override { return pages_max_; }
  int places_mapped() const override { return places_mapped_; }
  int places_max() const override { return places_max_of_linux; }

 private:
  static constexpr int none = -1;
  // Linux lets a process have 65,530 mappings (vm.max_map_count). A page is one, and the gap behind it may be another.
  static constexpr int places_max_of_linux = 24'000;

  struct Place {
    int physical = none;
    bool is_writable = false;
  };

  size_t index(int range, int page) const { return static_cast<size_t>(range) * pages_a_range_ + page; }
  Place& at(int range, int page) { return behind_[index(range, page)]; }
  uint8_t* address(int range, int page) const { return base(range) + page * page_bytes_; }

  // Sees to it that free_ ends with a physical page.
  Status find_free() {
    if (!free_.empty()) return Status();
    if (static_cast<int>(users_.size()) >= pages_max_) return Status::error("no KV page is free");
    if (ftruncate(file_, (static_cast<int64_t>(users_.size()) + 1) * page_bytes_) != 0)
      return Status::error(text("cannot grow KV memory: ", std::strerror(errno)));
    free_.push_back(static_cast<int>(users_.size()));
    users_.push_back(0);
    return Status();
  }

  // Through the file: the physical page may be behind no address yet.
  Status fill(int physical, const uint8_t* from) {
    for (int64_t done = 0; done < page_bytes_;) {
      const ssize_t written = pwrite(file_, from + done, page_bytes_ - done, physical * page_bytes_ + done);
      if (written < 0 && errno != EINTR) return Status::error(text("cannot copy a KV page: ", std::strerror(errno)));
      if (written > 0) done += written;
    }
    return Status();
  }

  Status place(int range, int page, int physical, bool is_writable) {
    // Populated at once: a first touch inside a kernel would cost it the page faults.
    void* placed = mmap(address(range, page), page_bytes_, is_writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | MAP_FIXED | MAP_POPULATE,
                        file_, physical * page_bytes_);
    if (placed == MAP_FAILED) return Status::error(text("cannot map a KV page: ", std::strerror(errno)));
    if (users_[physical]++ == 0) free_.pop_back();
    at(range, page) = {physical, is_writable};
    places_mapped_++;
    return Status();
  }

  Status allow_writing(int range, int page, bool is_writable) {
    Place& there = at(range, page);
    if (there.is_writable == is_writable) return Status();
    if (mprotect(address(range, page), page_bytes_, is_writable ? PROT_READ | PROT_WRITE : PROT_READ) != 0)
      return Status::error(text("cannot change the protection of a KV page: ", std::strerror(errno)));
    there.is_writable = is_writable;
    return Status();
  }

  const int pages_a_range_;
  const int64_t page_bytes_;
  const int pages_max_;
  const int64_t bytes_;
  const size_t places_;
  int file_ = -1;
  void* addresses_ = MAP_FAILED;
  std::vector<Place> behind_;  // [range][page]
  std::vector<int> users_;     // [physical page] -> mappings
  std::vector<int> free_;      // physical pages without a mapping; who takes one takes the last
  int places_mapped_ = 0;
};

}  // namespace

Result<std::unique_ptr<KvMemory>> reserve_kv_memory(int ranges, int pages_a_range, int64_t page_bytes, int pages_max) {
  auto memory = std::make_unique<MmapKvMemory>(ranges, pages_a_range, page_bytes, pages_max);
  if (Status status = memory->reserve(); !status.ok()) return status;
  return std::unique_ptr<KvMemory>(std::move(memory));
}

}  // namespace millrace
