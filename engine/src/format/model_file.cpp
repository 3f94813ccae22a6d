#include "model_file.h"

#include <cstring>
#include <filesystem>

#include "gguf.h"
#include "hf/directory.h"

namespace millrace {

void read_row(const FileTensor& tensor, int64_t row, float* values) {
  if (tensor.type == Type::derived)
    tensor.derive(row, values);
  else
    dequantize(tensor.type, tensor.row(row), tensor.columns(), values);
}

std::vector<float> read_vector(const FileTensor* tensor) {
  if (tensor == nullptr) return {};
  std::vector<float> values(static_cast<size_t>(tensor->columns()));
  read_row(*tensor, 0, values.data());
  return values;
}

template <typename Kind>
const Kind* ModelFile::find(const std::string& key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? nullptr : std::get_if<Kind>(&found->second);
}

std::optional<int64_t> ModelFile::integer(const std::string& key) const {
  const auto* value = find<int64_t>(key);
  return value ? std::optional(*value) : std::nullopt;
}

std::optional<double> ModelFile::number(const std::string& key) const {
  if (const auto* value = find<double>(key)) return *value;
  if (const auto* value = find<int64_t>(key)) return static_cast<double>(*value);
  return std::nullopt;
}

std::optional<bool> ModelFile::boolean(const std::string& key) const {
  const auto* value = find<bool>(key);
  return value ? std::optional(*value) : std::nullopt;
}

std::optional<std::string> ModelFile::string(const std::string& key) const {
  const auto* value = find<std::string>(key);
  return value ? std::optional(*value) : std::nullopt;
}

const std::vector<std::string>& ModelFile::strings(const std::string& key) const {
  static const std::vector<std::string> none;
  const auto* value = find<std::vector<std::string>>(key);
  return value ? *value : none;
}

const std::vector<double>& ModelFile::numbers(const std::string& key) const {
  static const std::vector<double> none;
  const auto* value = find<std::vector<double>>(key);
  return value ? *value : none;
}

const FileTensor* ModelFile::tensor(const std::string& name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

bool ModelFile::set(const std::string& key, Value value) { return metadata_.emplace(key, std::move(value)).second; }

bool ModelFile::add(FileTensor tensor) {
  if (!tensor_index_.emplace(tensor.name, tensors_.size()).second) return false;
  tensors_.push_back(std::move(tensor));
  return true;
}

const MappedFile& ModelFile::hold(MappedFile file) {
  size_ += file.bytes().size();
  files_.push_back(std::make_unique<MappedFile>(std::move(file)));
  return *files_.back();
}

Status ModelFile::read(const uint8_t* from, size_t count, uint8_t* to) const {
  for (const std::unique_ptr<MappedFile>& file : files_)
    if (file->holds(from, count)) return file->read(from, count, to);
  std::memcpy(to, from, count);  // it was allocated
  return Status();
}

uint64_t ModelFile::direct_bytes() const {
  uint64_t bytes = 0;
  for (const std::unique_ptr<MappedFile>& file : files_) bytes += file->direct_bytes();
  return bytes;
}

uint8_t* ModelFile::allocate(size_t bytes) {
  memory_.push_back(std::make_unique<uint8_t[]>(bytes));
  return memory_.back().get();
}

Result<std::unique_ptr<ModelFile>> open_model(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored) ? read_hf_directory(path) : read_gguf(path);
}

}  // namespace millrace
