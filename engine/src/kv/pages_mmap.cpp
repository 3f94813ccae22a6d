// A CPU's KV pages: one memfd holds them, mmap puts them behind the reserved addresses.
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "../base/text.h"
#include "pages.h"

namespace millrace {
namespace {

class MmapPages final : public KvPages {
 public:
  MmapPages(int64_t places, int64_t page_bytes) : page_bytes_(page_bytes), bytes_(places * page_bytes) {}

  ~MmapPages() override {
    if (addresses_ != MAP_FAILED) munmap(addresses_, static_cast<size_t>(bytes_));
    if (file_ >= 0) close(file_);
  }

  Status reserve() {
    file_ = memfd_create("millrace-kv", MFD_CLOEXEC);
    if (file_ < 0) return Status::error(text("no memory file for KV pages: ", std::strerror(errno)));
    addresses_ = mmap(nullptr, static_cast<size_t>(bytes_), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (addresses_ == MAP_FAILED)
      return Status::error(text("cannot reserve ", bytes_ >> 20, " MiB of addresses for KV memory (", std::strerror(errno),
                                "); choose fewer slots or a shorter context"));
    return Status();
  }

  uint8_t* address(int64_t place) const override { return static_cast<uint8_t*>(addresses_) + place * page_bytes_; }
  // Linux lets a process have 65,530 mappings (vm.max_map_count). A page is one, and the gap behind it may be another.
  int64_t places_max() const override { return 24'000; }

  Status create(int page) override {
    return ftruncate(file_, (int64_t{page} + 1) * page_bytes_) == 0 ? Status() : Status::error(text("cannot grow KV memory: ", std::strerror(errno)));
  }

  Status attach(int64_t place, int page, bool is_writable) override {
    // Populated at once: a first touch inside a kernel would cost it the page faults.
    const void* placed = mmap(address(place), static_cast<size_t>(page_bytes_), access(is_writable), MAP_SHARED | MAP_FIXED | MAP_POPULATE, file_, page * page_bytes_);
    return placed != MAP_FAILED ? Status() : Status::error(text("cannot map a KV page: ", std::strerror(errno)));
  }

  Status protect(int64_t place, bool is_writable) override {
    if (mprotect(address(place), static_cast<size_t>(page_bytes_), access(is_writable)) == 0) return Status();
    return Status::error(text("cannot change the protection of a KV page: ", std::strerror(errno)));
  }

  // A fresh inaccessible mapping replaces the pages: the range stays ours. Shrinking what is mapped cannot run out of memory.
  void detach(int64_t place, int count) override {
    mmap(address(place), static_cast<size_t>(page_bytes_ * count), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  }

  // Through the file.
  Status copy(int page, int64_t from) override {
    for (int64_t done = 0; done < page_bytes_;) {
      const ssize_t written = pwrite(file_, address(from) + done, static_cast<size_t>(page_bytes_ - done), page * page_bytes_ + done);
      if (written < 0 && errno != EINTR) return Status::error(text("cannot copy a KV page: ", std::strerror(errno)));
      if (written > 0) done += written;
    }
    return Status();
  }

 private:
  static int access(bool is_writable) { return is_writable ? PROT_READ | PROT_WRITE : PROT_READ; }

  const int64_t page_bytes_;
  const int64_t bytes_;
  int file_ = -1;
  void* addresses_ = MAP_FAILED;
};

}  // namespace

Result<std::unique_ptr<KvPages>> reserve_mmap_pages(int64_t places, int64_t page_bytes) {
  auto pages = std::make_unique<MmapPages>(places, page_bytes);
  if (Status status = pages->reserve(); !status.ok()) return status;
  return std::unique_ptr<KvPages>(std::move(pages));
}

}  // namespace millrace
