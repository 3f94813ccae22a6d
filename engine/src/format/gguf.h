// A GGUF v3 file, mapped read-only: its metadata by key and its tensors by name. Everything the header says is checked against the
// file's size before it is believed, so a file that lies costs an error and never a read past its end.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "status.h"
#include "types.h"

namespace millrace {

// One tensor as it lies in the file. shape[0] is the contiguous dimension (columns); rows follow.
struct FileTensor {
  std::string name;
  Type type = Type::f32;
  std::array<int64_t, 4> shape = {1, 1, 1, 1};
  const uint8_t* bytes = nullptr;

  int64_t columns() const { return shape[0]; }
  int64_t rows() const { return shape[1] * shape[2] * shape[3]; }
  int64_t row_bytes() const { return shape[0] / values_a_block(type) * bytes_a_block(type); }
  const uint8_t* row(int64_t index) const { return bytes + index * row_bytes(); }
};

class GgufFile {
 public:
  static Result<std::unique_ptr<GgufFile>> open(const std::string& path);
  ~GgufFile();
  GgufFile(const GgufFile&) = delete;
  GgufFile& operator=(const GgufFile&) = delete;

  // A metadata value, or nothing where the key is missing or holds another kind.
  std::optional<int64_t> integer(const std::string& key) const;
  std::optional<double> number(const std::string& key) const;
  std::optional<bool> boolean(const std::string& key) const;
  std::optional<std::string> string(const std::string& key) const;
  const std::vector<std::string>& strings(const std::string& key) const;
  const std::vector<double>& numbers(const std::string& key) const;

  const FileTensor* tensor(const std::string& name) const;
  const std::vector<FileTensor>& tensors() const { return tensors_; }
  const std::string& path() const { return path_; }
  uint64_t size_bytes() const { return size_; }

 private:
  using Value = std::variant<int64_t, double, bool, std::string, std::vector<std::string>, std::vector<double>>;
  friend class GgufReader;

  GgufFile() = default;
  template <typename Kind>
  const Kind* find(const std::string& key) const;

  std::string path_;
  const uint8_t* map_ = nullptr;
  uint64_t size_ = 0;
  std::unordered_map<std::string, Value> metadata_;
  std::vector<FileTensor> tensors_;
  std::unordered_map<std::string, size_t> tensor_index_;
};

}  // namespace millrace
