// Bytes as a file, in memory: loaders open paths.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

namespace millrace::fuzz {

class BytesFile {
 public:
  BytesFile() : descriptor_(memfd_create("fuzz", 0)) {}
  ~BytesFile() { close(descriptor_); }
  BytesFile(const BytesFile&) = delete;
  BytesFile& operator=(const BytesFile&) = delete;

  std::string write(const uint8_t* data, size_t size) const {
    const bool written = ftruncate(descriptor_, 0) == 0 && pwrite(descriptor_, data, size, 0) == static_cast<ssize_t>(size);
    if (!written) std::exit(2);  // no memory: nothing about the loader was learned
    return "/proc/self/fd/" + std::to_string(descriptor_);
  }

 private:
  int descriptor_;
};

}  // namespace millrace::fuzz
