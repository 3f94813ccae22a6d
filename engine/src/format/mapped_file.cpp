#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "../base/text.h"

namespace millrace {
namespace {

// Of memory, and what reads past the cache must begin and end at.
constexpr size_t page_bytes = 4096;
constexpr size_t read_bytes = 1 << 20;  // at a time

size_t rounded_down(size_t value) { return value / page_bytes * page_bytes; }
size_t rounded_up(size_t value) { return rounded_down(value + page_bytes - 1); }

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  auto opened = std::make_unique<Opened>();
  // Without O_NONBLOCK a named pipe would be waited for, perhaps for ever.
  opened->file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (opened->file < 0) return Status::error(text(path, " cannot be opened: ", std::strerror(errno)));
  struct stat status = {};
  if (fstat(opened->file, &status) != 0 || !S_ISREG(status.st_mode)) return Status::error(path + " is not a file");
  const size_t size = static_cast<size_t>(status.st_size);
  void* map = size > 0 ? mmap(nullptr, size, PROT_READ, MAP_PRIVATE, opened->file, 0) : nullptr;
  if (map == MAP_FAILED) return Status::error(text(path, " cannot be mapped: ", std::strerror(errno)));
  opened->bytes = {static_cast<const uint8_t*>(map), size};
  // The same file, whatever has the path by now.
  opened->direct = ::open(text("/proc/self/fd/", opened->file).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
  return MappedFile(path, std::move(opened));
}

MappedFile::Opened::~Opened() {
  if (bytes.data() != nullptr) munmap(const_cast<uint8_t*>(bytes.data()), bytes.size());
  for (const int descriptor : {file, direct})
    if (descriptor >= 0) close(descriptor);
}

bool MappedFile::holds(const uint8_t* from, size_t count) const {
  const uint8_t* begin = bytes().data();
  return std::greater_equal<>()(from, begin) && std::less<>()(from, begin + bytes().size()) && count <= bytes().size() - static_cast<size_t>(from - begin);
}

Status MappedFile::read(const uint8_t* from, size_t count, uint8_t* to) const {
  const auto first = static_cast<size_t>(from - bytes().data());
  for (size_t done = 0; done < count;) {
    const size_t now = std::min(count - done, read_bytes), offset = first + done;
    const bool is_read = opened_->direct >= 0 && !is_cached(offset, now) && read_direct(offset, now, to + done);
    if (Status status = is_read ? Status() : read_cached(offset, now, to + done); !status.ok()) return status;
    done += now;
  }
  return Status();
}

// Pages come and go by many, so that the first and the last tell of those between; to ask for all takes a sixteenth of the time that copying them
// does. Where a few are missing after all, the kernel reads them. Of files that are not ours it says that they are there.
bool MappedFile::is_cached(size_t offset, size_t count) const {
  const auto is_there = [&](size_t place) {
    unsigned char state = 0;
    return mincore(const_cast<uint8_t*>(bytes().data()) + rounded_down(place), page_bytes, &state) != 0 || (state & 1) != 0;
  };
  return is_there(offset) && is_there(offset + count - 1);
}

Status MappedFile::read_cached(size_t offset, size_t count, uint8_t* to) const {
  for (size_t done = 0; done < count;) {
    const ssize_t got = pread(opened_->file, to + done, count - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Status::error(text(path_, " cannot be read: ", std::strerror(errno)));
    if (got == 0) return Status::error(text(path_, " ends at byte ", offset + done, ": it was cut short while it was being read"));
    done += static_cast<size_t>(got);
  }
  return Status();
}

// Through memory of the thread's own, since the kernel writes whole pages. False: the other way must serve.
bool MappedFile::read_direct(size_t offset, size_t count, uint8_t* to) const {
  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<uint8_t, Free> memory;
  if (memory == nullptr) memory.reset(static_cast<uint8_t*>(std::aligned_alloc(page_bytes, read_bytes + 2 * page_bytes)));
  const size_t begin = rounded_down(offset), end = rounded_up(offset + count);
  if (memory == nullptr) return false;
  const ssize_t got = pread(opened_->direct, memory.get(), end - begin, static_cast<off_t>(begin));
  if (got < 0 || static_cast<size_t>(got) < offset + count - begin) return false;
  std::memcpy(to, memory.get() + (offset - begin), count);
  opened_->direct_bytes += count;
  return true;
}

}  // namespace millrace
