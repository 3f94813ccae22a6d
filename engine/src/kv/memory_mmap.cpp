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
  MmapKvMemory(int slots, int pages_a_slot, int64_t page_bytes, int pages_max)
      : pages_a_slot_(pages_a_slot), page_bytes_(page_bytes), pages_max_(pages_max), range_bytes_(page_bytes * pages_a_slot * slots),
        places_(static_cast<size_t>(slots) * pages_a_slot) {}

  ~MmapKvMemory() override {
    if (range_ != MAP_FAILED) munmap(range_, range_bytes_);
    if (file_ >= 0) close(file_);
  }

  Status reserve() {
    file_ = memfd_create("millrace-kv", MFD_CLOEXEC);
    if (file_ < 0) return Status::error(text("no memory file for KV pages: ", std::strerror(errno)));
    range_ = mmap(nullptr, range_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range_ == MAP_FAILED)
      return Status::error(text("cannot reserve ", range_bytes_ >> 20, " MiB of addresses for KV memory (", std::strerror(errno),
                                "); choose fewer slots or a shorter context"));
    behind_.assign(places_, none);
    return Status();
  }

  uint8_t* base(int slot) const override { return static_cast<uint8_t*>(range_) + int64_t{slot} * pages_a_slot_ * page_bytes_; }

  Status map(int slot, int page) override {
    assert(behind(slot, page) == none);
    const bool reused = !free_.empty();
    if (!reused && static_cast<int>(users_.size()) >= pages_max_) return Status::error("no KV page is free");
    if (!reused) {
      if (ftruncate(file_, (static_cast<int64_t>(users_.size()) + 1) * page_bytes_) != 0)
        return Status::error(text("cannot grow KV memory: ", std::strerror(errno)));
      free_.push_back(static_cast<int>(users_.size()));
      users_.push_back(0);
    }
    const int physical = free_.back();
    if (Status status = place(slot, page, physical); !status.ok()) return status;
    free_.pop_back();
    return Status();
  }

  Status alias(int slot, int page, int from_slot, int from_page) override {
    assert(behind(slot, page) == none && behind(from_slot, from_page) != none);
    return place(slot, page, behind(from_slot, from_page));
  }

  void unmap(int slot, int page) override {
    const int physical = behind(slot, page);
    assert(physical != none);
    // A fresh inaccessible mapping replaces the page: the range stays ours. Shrinking what is mapped cannot run out of memory.
    mmap(address(slot, page), page_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    behind(slot, page) = none;
    if (--users_[physical] == 0) free_.push_back(physical);
  }

  int pages_mapped() const override { return static_cast<int>(users_.size() - free_.size()); }
  int pages_max() const override { return pages_max_; }

 private:
  static constexpr int none = -1;

  int& behind(int slot, int page) { return behind_[static_cast<size_t>(slot) * pages_a_slot_ + page]; }
  uint8_t* address(int slot, int page) const { return base(slot) + page * page_bytes_; }

  Status place(int slot, int page, int physical) {
    // Populated at once: a first touch inside a kernel would cost it the page faults.
    void* placed = mmap(address(slot, page), page_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, file_,
                        physical * page_bytes_);
    if (placed == MAP_FAILED) return Status::error(text("cannot map a KV page: ", std::strerror(errno)));
    behind(slot, page) = physical;
    users_[physical]++;
    return Status();
  }

  const int pages_a_slot_;
  const int64_t page_bytes_;
  const int pages_max_;
  const int64_t range_bytes_;
  const size_t places_;
  int file_ = -1;
  void* range_ = MAP_FAILED;
  std::vector<int> behind_;  // [slot][page] -> physical page, or none
  std::vector<int> users_;   // [physical page] -> mappings
  std::vector<int> free_;    // physical pages without a mapping
};

}  // namespace

Result<std::unique_ptr<KvMemory>> reserve_kv_memory(int slots, int pages_a_slot, int64_t page_bytes, int pages_max) {
  auto memory = std::make_unique<MmapKvMemory>(slots, pages_a_slot, page_bytes, pages_max);
  if (Status status = memory->reserve(); !status.ok()) return status;
  return std::unique_ptr<KvMemory>(std::move(memory));
}

}  // namespace millrace
