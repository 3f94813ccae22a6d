#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "../base/text.h"

namespace millrace {

Result<MappedFile> MappedFile::open(const std::string& path) {
  // Without O_NONBLOCK a named pipe would be waited for, perhaps for ever.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return Status::error(text(path, " cannot be opened: ", std::strerror(errno)));
  struct stat status = {};
  if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    return Status::error(path + " is not a file");
  }
  const size_t size = static_cast<size_t>(status.st_size);
  void* map = size > 0 ? mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0) : nullptr;
  ::close(descriptor);
  if (map == MAP_FAILED) return Status::error(text(path, " cannot be mapped: ", std::strerror(errno)));
  return MappedFile(path, {static_cast<const uint8_t*>(map), size});
}

MappedFile::~MappedFile() {
  if (bytes_.data() != nullptr) munmap(const_cast<uint8_t*>(bytes_.data()), bytes_.size());
}

}  // namespace millrace
