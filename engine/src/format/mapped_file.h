// A file mapped read-only, for as long as this object lives. Who wants much of it copied as it is need not touch the mapping, whose pages come one
// fault at a time: read() takes it from the kernel's cache, or past it from the disk.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "status.h"

namespace millrace {

class MappedFile {
 public:
  // Refuses what is missing, unreadable or no regular file.
  static Result<MappedFile> open(const std::string& path);

  const std::string& path() const { return path_; }
  std::span<const uint8_t> bytes() const { return opened_->bytes; }
  bool holds(const uint8_t* from, size_t count) const;

  // Copies bytes of the mapping. What the kernel has in its cache comes from there; what it has not is read past it, where the file system
  // can do that, so that a model larger than the cache does not drive everything else out. From any thread.
  Status read(const uint8_t* from, size_t count, uint8_t* to) const;
  // How much was read past the cache so far.
  uint64_t direct_bytes() const { return opened_->direct_bytes; }

 private:
  struct Opened {
    ~Opened();
    std::span<const uint8_t> bytes;
    int file = -1, direct = -1;  // descriptors; direct reads past the cache, -1 where the file system cannot
    std::atomic<uint64_t> direct_bytes{0};
  };

  MappedFile(std::string path, std::unique_ptr<Opened> opened) : path_(std::move(path)), opened_(std::move(opened)) {}

  bool is_cached(size_t offset, size_t count) const;
  Status read_cached(size_t offset, size_t count, uint8_t* to) const;
  bool read_direct(size_t offset, size_t count, uint8_t* to) const;

  std::string path_;
  std::unique_ptr<Opened> opened_;
};

}  // namespace millrace
