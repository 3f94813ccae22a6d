// Writes GGUF v3 files, right ones and, for those who ask, wrong ones: every field can be given what the format forbids.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "format/types.h"

namespace millrace::test {

class GgufWriter {
 public:
  void text(const std::string& key, std::string_view value);
  void integer(const std::string& key, uint32_t value);
  void number(const std::string& key, float value);
  void flag(const std::string& key, bool value);
  void texts(const std::string& key, const std::vector<std::string>& values);
  void integers(const std::string& key, const std::vector<int32_t>& values);
  // `dimensions` as the file has them: columns first. `bytes` is the data as stored.
  void tensor(const std::string& name, uint32_t type, const std::vector<uint64_t>& dimensions, std::string bytes);

  // The whole file. Counts other than the true ones may be claimed.
  std::string bytes() const { return bytes(tensors_.size(), keys_); }
  std::string bytes(uint64_t tensors_claimed, uint64_t keys_claimed) const;
  // How many bytes of it are header: behind them lie padding and data.
  size_t header_bytes() const { return header(tensors_.size(), keys_).size(); }

  // Set before tensors are added; offsets are rounded to it.
  uint64_t alignment = 32;
  uint32_t version = 3;

 private:
  struct Tensor {
    std::string name;
    uint32_t type;
    std::vector<uint64_t> dimensions;
    uint64_t offset;
  };
  std::string header(uint64_t tensors_claimed, uint64_t keys_claimed) const;
  void key(const std::string& name, uint32_t kind);

  std::string pairs_;
  uint64_t keys_ = 0;
  std::vector<Tensor> tensors_;
  std::string data_;
};

// A file that is gone with this object.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string_view bytes);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }
  // Puts other bytes in its place.
  void write(std::string_view bytes) const;

 private:
  std::string path_;
};

// A folder that is gone with this object, and its files.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  void write(const std::string& name, std::string_view bytes) const;
  std::string read(const std::string& name) const;
  void remove(const std::string& name) const;

 private:
  std::string path_;
};

}  // namespace millrace::test
