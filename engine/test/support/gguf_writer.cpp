#include "gguf_writer.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace millrace::test {
namespace {

template <typename Value>
void put(std::string& bytes, Value value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void put_text(std::string& bytes, std::string_view value) {
  put(bytes, uint64_t{value.size()});
  bytes += value;
}

void pad(std::string& bytes, uint64_t alignment) {
  if (alignment > 0) bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
}

}  // namespace

void GgufWriter::key(const std::string& name, uint32_t kind) {
  put_text(pairs_, name);
  put(pairs_, kind);
  keys_++;
}

void GgufWriter::text(const std::string& name, std::string_view value) {
  key(name, 8);
  put_text(pairs_, value);
}

void GgufWriter::integer(const std::string& name, uint32_t value) {
  key(name, 4);
  put(pairs_, value);
}

void GgufWriter::number(const std::string& name, float value) {
  key(name, 6);
  put(pairs_, value);
}

void GgufWriter::flag(const std::string& name, bool value) {
  key(name, 7);
  put(pairs_, uint8_t{value});
}

void GgufWriter::texts(const std::string& name, const std::vector<std::string>& values) {
  key(name, 9);
  put(pairs_, uint32_t{8});
  put(pairs_, uint64_t{values.size()});
  for (const std::string& value : values) put_text(pairs_, value);
}

void GgufWriter::integers(const std::string& name, const std::vector<int32_t>& values) {
  key(name, 9);
  put(pairs_, uint32_t{5});
  put(pairs_, uint64_t{values.size()});
  for (const int32_t value : values) put(pairs_, value);
}

void GgufWriter::tensor(const std::string& name, uint32_t type, const std::vector<uint64_t>& dimensions, std::string bytes) {
  pad(data_, alignment);
  tensors_.push_back({name, type, dimensions, data_.size()});
  data_ += bytes;
}

std::string GgufWriter::header(uint64_t tensors_claimed, uint64_t keys_claimed) const {
  std::string bytes = "GGUF";
  put(bytes, version);
  put(bytes, tensors_claimed);
  put(bytes, keys_claimed);
  bytes += pairs_;
  for (const Tensor& tensor : tensors_) {
    put_text(bytes, tensor.name);
    put(bytes, static_cast<uint32_t>(tensor.dimensions.size()));
    for (const uint64_t dimension : tensor.dimensions) put(bytes, dimension);
    put(bytes, tensor.type);
    put(bytes, tensor.offset);
  }
  return bytes;
}

std::string GgufWriter::bytes(uint64_t tensors_claimed, uint64_t keys_claimed) const {
  std::string bytes = header(tensors_claimed, keys_claimed);
  pad(bytes, alignment);
  return bytes + data_;
}

TemporaryFile::TemporaryFile(std::string_view bytes) {
  const char* folder = std::getenv("TMPDIR");
  path_ = std::string(folder ? folder : "/tmp") + "/millrace-test-XXXXXX";
  const int descriptor = mkstemp(path_.data());
  if (descriptor < 0) throw std::runtime_error("no temporary file can be made at " + path_);
  close(descriptor);
  write(bytes);
}

TemporaryFile::~TemporaryFile() { unlink(path_.c_str()); }

void TemporaryFile::write(std::string_view bytes) const {
  std::ofstream out(path_, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!out.flush()) throw std::runtime_error(path_ + " cannot be written");
}

TemporaryFolder::TemporaryFolder() {
  const char* folder = std::getenv("TMPDIR");
  path_ = std::string(folder ? folder : "/tmp") + "/millrace-test-XXXXXX";
  if (mkdtemp(path_.data()) == nullptr) throw std::runtime_error("no temporary folder can be made at " + path_);
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void TemporaryFolder::write(const std::string& name, std::string_view bytes) const {
  std::ofstream out(path_ + "/" + name, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!out.flush()) throw std::runtime_error(path_ + "/" + name + " cannot be written");
}

std::string TemporaryFolder::read(const std::string& name) const {
  std::ifstream file(path_ + "/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void TemporaryFolder::remove(const std::string& name) const { std::filesystem::remove(path_ + "/" + name); }

}  // namespace millrace::test
