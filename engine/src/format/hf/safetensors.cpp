#include "safetensors.h"

#include <cstring>

#include "../../base/text.h"
#include "../json.h"

namespace millrace {
namespace {

constexpr uint64_t header_bytes_max = 100'000'000;  // the format's own bound
constexpr size_t dimensions_max = 8, tensors_max = 1 << 20;
constexpr int64_t values_max = int64_t{1} << 40;

// Bytes of a value, 0 for a type that we do not know.
int bytes_of(const std::string& dtype) {
  static const std::map<std::string, int> sizes = {{"F64", 8},     {"I64", 8}, {"U64", 8}, {"F32", 4},     {"I32", 4},     {"U32", 4},    {"F16", 2}, {"BF16", 2},
                                                   {"I16", 2},     {"U16", 2}, {"I8", 1},  {"U8", 1},      {"BOOL", 1},    {"F8_E4M3", 1}, {"F8_E5M2", 1},
                                                   {"F8_E8M0", 1}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

Result<StoredTensor> read_entry(const Json& entry, std::span<const uint8_t> data) {
  StoredTensor tensor;
  const std::string* dtype = entry["dtype"].string();
  const Json::Array* shape = entry["shape"].array();
  const Json::Array* offsets = entry["data_offsets"].array();
  if (dtype == nullptr || shape == nullptr || offsets == nullptr || offsets->size() != 2)
    return Status::error("lacks its dtype, shape or data_offsets");
  tensor.dtype = *dtype;
  const int width = bytes_of(*dtype);
  if (width == 0) return Status::error("has values of type " + *dtype + ", which is not read");
  if (shape->size() > dimensions_max) return Status::error(text("has ", shape->size(), " dimensions"));
  int64_t values = 1;
  for (const Json& dimension : *shape) {
    const int64_t size = dimension.integer().value_or(-1);
    if (size < 0 || (size > 0 && values > values_max / size)) return Status::error("has an impossible shape");
    values *= size;
    tensor.shape.push_back(size);
  }
  const int64_t begin = (*offsets)[0].integer().value_or(-1), end = (*offsets)[1].integer().value_or(-1);
  if (begin < 0 || end < begin) return Status::error("has impossible data_offsets");
  if (static_cast<uint64_t>(end) > data.size())
    return Status::error(text("ends at byte ", end, " of the data, of which there are ", data.size(), ": the file is cut short; fetch it again"));
  if (end - begin != values * width) return Status::error(text("has ", end - begin, " bytes where its shape and type call for ", values * width));
  tensor.bytes = data.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  return tensor;
}

}  // namespace

int64_t StoredTensor::values() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

Status read_safetensors(const MappedFile& file, StoredTensors& tensors) {
  const std::span<const uint8_t> bytes = file.bytes();
  uint64_t length = 0;
  if (bytes.size() >= sizeof(length)) std::memcpy(&length, bytes.data(), sizeof(length));
  if (bytes.size() < sizeof(length) || length > header_bytes_max || length > bytes.size() - sizeof(length))
    return Status::error(text(file.path(), " claims a header of ", length, " bytes in a file of ", bytes.size(), ": it is cut short, or no safetensors file"));
  const std::string_view text_of_header(reinterpret_cast<const char*>(bytes.data()) + sizeof(length), length);
  auto parsed = parse_json(text_of_header);
  if (!parsed.ok()) return Status::error(file.path() + " has a header that " + parsed.message());
  const Json header = parsed.take();
  if (header.object() == nullptr) return Status::error(file.path() + " has a header that is no JSON object");
  if (header.object()->size() > tensors_max) return Status::error(text(file.path(), " claims ", header.object()->size(), " tensors"));
  for (const auto& [name, entry] : *header.object()) {
    if (name == "__metadata__") continue;
    auto tensor = read_entry(entry, bytes.subspan(sizeof(length) + length));
    if (!tensor.ok()) return Status::error(file.path() + ": tensor " + name + " " + tensor.message());
    if (!tensors.emplace(name, tensor.take()).second) return Status::error(file.path() + " has the tensor " + name + ", which another file has too");
  }
  return Status();
}

}  // namespace millrace
