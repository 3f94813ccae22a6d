// A model as it was stored, whatever the format: metadata by key and tensors by name. Keys and names are GGUF's in every format
// (`llama.block_count`, `blk.0.attn_q.weight`), so that an architecture is read by one reader. One key is ours:
// `millrace.rope.style` says which of a head's dimensions turn together, `interleaved` (2i and 2i + 1) or `halves` (i and i + n / 2).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "mapped_file.h"
#include "status.h"
#include "types.h"

namespace millrace {

constexpr char rope_style_key[] = "millrace.rope.style";

// A row of E4M3 times a scale.
struct E4m3Row {
  const uint8_t* bits = nullptr;  // [columns]
  float scale = 0;
};

// One tensor as it is stored. shape[0] is the contiguous dimension (columns); rows follow. Its rows lie one after another from
// `bytes`, or where `places` says, or, with type `derived`, are computed by `derive`; read_row() knows all three.
struct FileTensor {
  std::string name;
  Type type = Type::f32;
  std::array<int64_t, 4> shape = {1, 1, 1, 1};
  const uint8_t* bytes = nullptr;
  std::vector<const uint8_t*> places;                      // [rows], or none
  std::function<void(int64_t row, float* values)> derive;  // only with type `derived`
  std::function<E4m3Row(int64_t row)> e4m3;                // likewise, where each row is that
  std::string kind;                                        // likewise: what it is stored as, for a person

  int64_t columns() const { return shape[0]; }
  int64_t rows() const { return shape[1] * shape[2] * shape[3]; }
  int64_t row_bytes() const { return shape[0] / values_a_block(type) * bytes_a_block(type); }
  const uint8_t* row(int64_t index) const { return places.empty() ? bytes + index * row_bytes() : places[static_cast<size_t>(index)]; }
};

// Writes the [columns] values of one row.
void read_row(const FileTensor& tensor, int64_t row, float* values);
// The values of a tensor of one row; none of a null one.
std::vector<float> read_vector(const FileTensor* tensor);

class ModelFile {
 public:
  using Value = std::variant<int64_t, double, bool, std::string, std::vector<std::string>, std::vector<double>>;

  explicit ModelFile(std::string path) : path_(std::move(path)) {}
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;

  // A metadata value, or nothing where the key is missing or holds another kind.
  std::optional<int64_t> integer(const std::string& key) const;
  std::optional<double> number(const std::string& key) const;
  std::optional<bool> boolean(const std::string& key) const;
  std::optional<std::string> string(const std::string& key) const;
  const std::vector<std::string>& strings(const std::string& key) const;
  const std::vector<double>& numbers(const std::string& key) const;

  const FileTensor* tensor(const std::string& name) const;
  const std::vector<FileTensor>& tensors() const { return tensors_; }
  // The file or directory as the user named it.
  const std::string& path() const { return path_; }
  // Of all files together.
  uint64_t size_bytes() const { return size_; }
  // Copies bytes of a tensor; see MappedFile::read. From any thread.
  Status read(const uint8_t* from, size_t count, uint8_t* to) const;
  uint64_t direct_bytes() const;

  // What readers of formats fill it with. Both are false, and change nothing, where the name is taken.
  bool set(const std::string& key, Value value);
  bool add(FileTensor tensor);
  // Keeps a mapping, or memory, alive as long as this.
  const MappedFile& hold(MappedFile file);
  uint8_t* allocate(size_t bytes);

 private:
  template <typename Kind>
  const Kind* find(const std::string& key) const;

  std::string path_;
  uint64_t size_ = 0;
  std::vector<std::unique_ptr<MappedFile>> files_;
  std::vector<std::unique_ptr<uint8_t[]>> memory_;
  std::unordered_map<std::string, Value> metadata_;
  std::vector<FileTensor> tensors_;
  std::unordered_map<std::string, size_t> tensor_index_;
};

// Reads a model's headers and maps its weights; the format is seen from what lies at the path.
Result<std::unique_ptr<ModelFile>> open_model(const std::string& path);

}  // namespace millrace
