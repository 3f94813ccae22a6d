#include "gguf.h"

#include <cstring>
#include <filesystem>
#include <regex>

#include "../base/text.h"

namespace millrace {
namespace {

constexpr uint32_t magic = 0x46554747;  // "GGUF"
constexpr uint64_t tensors_max = 1 << 20, keys_max = 1 << 20, name_bytes_max = 1 << 16;
constexpr int parts_max = 1000;
constexpr int64_t dimension_max = int64_t{1} << 40;

enum class Kind : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

int bytes_of(Kind kind) {
  switch (kind) {
    case Kind::u8:
    case Kind::i8:
    case Kind::boolean:
      return 1;
    case Kind::u16:
    case Kind::i16:
      return 2;
    case Kind::u32:
    case Kind::i32:
    case Kind::f32:
      return 4;
    case Kind::u64:
    case Kind::i64:
    case Kind::f64:
      return 8;
    case Kind::string:
    case Kind::array:
      return 0;
  }
  return -1;
}

// Reads the header from front to back. The first thing that is wrong is kept, and everything after it reads as zero.
class GgufReader {
 public:
  GgufReader(const MappedFile& file, ModelFile& model) : file_(file), model_(model) {}

  Status read() {
    if (size() < 24) return wrong("has only " + std::to_string(size()) + " bytes, too few for a GGUF header");
    if (take<uint32_t>() != magic) return wrong("does not begin with GGUF: it is another kind of file");
    const uint32_t version = take<uint32_t>();
    if (version != 3) return wrong(text("is GGUF version ", version, "; version 3 is read (little-endian). Convert it anew"));
    const uint64_t tensors = take<uint64_t>(), keys = take<uint64_t>();
    if (tensors > tensors_max || keys > keys_max) return wrong(text("claims ", tensors, " tensors and ", keys, " keys"));
    for (uint64_t i = 0; i < keys && error_.empty(); i++) read_pair();
    for (uint64_t i = 0; i < tensors && error_.empty(); i++) read_tensor();
    if (error_.empty()) place_tensors();
    return error_.empty() ? Status() : wrong(error_);
  }

 private:
  Status wrong(const std::string& what) const { return Status::error(file_.path() + " " + what); }

  void fail(const std::string& what) {
    if (error_.empty()) error_ = what;
  }

  bool has(uint64_t bytes) {
    if (bytes <= size() - at_) return true;
    fail(text("ends at byte ", size(), ", inside its header at byte ", at_, ": the file is cut short; fetch it again"));
    return false;
  }

  template <typename Number>
  Number take() {
    Number value{};
    if (!error_.empty() || !has(sizeof(value))) return value;
    std::memcpy(&value, file_.bytes().data() + at_, sizeof(value));
    at_ += sizeof(value);
    return value;
  }

  std::string take_string(uint64_t bytes_max) {
    const uint64_t length = take<uint64_t>();
    if (!error_.empty() || !has(length)) return "";
    if (length > bytes_max) {
      fail(text("has a name of ", length, " bytes at byte ", at_));
      return "";
    }
    std::string value(reinterpret_cast<const char*>(file_.bytes().data() + at_), length);
    at_ += length;
    return value;
  }

  // One number of any kind, as a double; integers up to 64 bits also as they are.
  ModelFile::Value take_scalar(Kind kind) {
    switch (kind) {
      case Kind::u8:
        return int64_t{take<uint8_t>()};
      case Kind::i8:
        return int64_t{take<int8_t>()};
      case Kind::u16:
        return int64_t{take<uint16_t>()};
      case Kind::i16:
        return int64_t{take<int16_t>()};
      case Kind::u32:
        return int64_t{take<uint32_t>()};
      case Kind::i32:
        return int64_t{take<int32_t>()};
      case Kind::u64:
        return static_cast<int64_t>(take<uint64_t>());
      case Kind::i64:
        return take<int64_t>();
      case Kind::f32:
        return double{take<float>()};
      case Kind::f64:
        return take<double>();
      case Kind::boolean:
        return take<uint8_t>() != 0;
      case Kind::string:
        return take_string(size());
      case Kind::array:
        break;
    }
    fail(text("has a value of unknown kind ", static_cast<uint32_t>(kind), " at byte ", at_));
    return int64_t{0};
  }

  void read_pair() {
    const std::string key = take_string(name_bytes_max);
    const Kind kind = static_cast<Kind>(take<uint32_t>());
    ModelFile::Value value = kind == Kind::array ? take_array(key) : take_scalar(kind);
    if (error_.empty() && !model_.set(key, std::move(value))) fail("has the key " + key + " twice");
  }

  ModelFile::Value take_array(const std::string& key) {
    const Kind kind = static_cast<Kind>(take<uint32_t>());
    const uint64_t count = take<uint64_t>();
    const int width = bytes_of(kind);
    if (kind == Kind::array || width < 0) fail("has an array of unknown kind under " + key);
    // A string takes its 8 bytes of length at least: so many can there be at most.
    if (!error_.empty() || count > (size() - at_) / (width > 0 ? width : 8)) {
      fail(text("claims ", count, " items under ", key, ", more than the file has bytes for: it is cut short or damaged"));
      return int64_t{0};
    }
    if (kind == Kind::string) {
      std::vector<std::string> values;
      values.reserve(count);
      for (uint64_t i = 0; i < count && error_.empty(); i++) values.push_back(take_string(size()));
      return values;
    }
    std::vector<double> values;
    values.reserve(count);
    for (uint64_t i = 0; i < count && error_.empty(); i++) {
      const ModelFile::Value value = take_scalar(kind);
      if (const auto* integer = std::get_if<int64_t>(&value)) values.push_back(static_cast<double>(*integer));
      if (const auto* number = std::get_if<double>(&value)) values.push_back(*number);
      if (const auto* flag = std::get_if<bool>(&value)) values.push_back(*flag ? 1 : 0);
    }
    return values;
  }

  void read_tensor() {
    FileTensor tensor;
    tensor.name = take_string(name_bytes_max);
    const uint32_t dimensions = take<uint32_t>();
    if (error_.empty() && (dimensions < 1 || dimensions > 4)) fail(text("gives tensor ", tensor.name, " ", dimensions, " dimensions"));
    int64_t values = 1;
    for (uint32_t d = 0; d < dimensions && error_.empty(); d++) {
      tensor.shape[d] = static_cast<int64_t>(take<uint64_t>());
      if (tensor.shape[d] < 1 || tensor.shape[d] > dimension_max / values)
        fail(text("gives tensor ", tensor.name, " a dimension of ", tensor.shape[d]));
      else
        values *= tensor.shape[d];
    }
    const uint32_t type = take<uint32_t>();
    if (error_.empty() && !is_known(type))
      fail(text("has tensor ", tensor.name, " in type ", name_of(type), "; read are F32, F16, BF16, Q8_0, Q4_0 to Q5_1, Q2_K to Q6_K, IQ4_NL, IQ4_XS and MXFP4"));
    tensor.type = static_cast<Type>(type);
    offsets_.push_back(take<uint64_t>());
    if (!error_.empty()) return;
    if (tensor.shape[0] % values_a_block(tensor.type) != 0)
      fail(text("has tensor ", tensor.name, " with rows of ", tensor.shape[0], " values, no multiple of its block of ", values_a_block(tensor.type)));
    tensors_.push_back(std::move(tensor));
  }

  // Data begins at the next multiple of the alignment after the header.
  void place_tensors() {
    const uint64_t alignment = static_cast<uint64_t>(model_.integer("general.alignment").value_or(32));
    // Below 8, which the format forbids, a tensor's numbers could lie where they must not be read from.
    if (alignment < 8 || alignment > 1 << 20 || (alignment & (alignment - 1)) != 0)
      return fail(text("has an alignment of ", alignment, ", not a power of two from 8 to ", 1 << 20));
    const uint64_t data = (at_ + alignment - 1) / alignment * alignment;
    for (size_t i = 0; i < tensors_.size(); i++) {
      FileTensor& tensor = tensors_[i];
      const uint64_t bytes = static_cast<uint64_t>(tensor.row_bytes()) * static_cast<uint64_t>(tensor.rows());
      const uint64_t room = data < size() ? size() - data : 0;
      if (offsets_[i] % alignment != 0) return fail(text("places tensor ", tensor.name, " at ", offsets_[i], ", not aligned to ", alignment));
      if (bytes > room || offsets_[i] > room - bytes)
        return fail(text("has only ", size(), " bytes, but tensor ", tensor.name, " ends at byte ", data + offsets_[i] + bytes,
                         ": the file is cut short; fetch it again"));
      tensor.bytes = file_.bytes().data() + data + offsets_[i];
      if (!model_.add(tensor)) return fail("has the tensor " + tensor.name + " twice");
    }
  }

  uint64_t size() const { return file_.bytes().size(); }

  const MappedFile& file_;
  ModelFile& model_;
  uint64_t at_ = 0;
  std::vector<FileTensor> tensors_;
  std::vector<uint64_t> offsets_;  // [tensors], from the beginning of the data
  std::string error_;
};

// GGUF's Llamas have the rows of q and k permuted, so that pairs that turn together lie side by side; no other architecture has.
void name_rope_style(ModelFile& model) {
  const bool permuted = model.string("general.architecture") == "llama";
  model.set(rope_style_key, std::string(permuted ? "interleaved" : "halves"));
}

// The paths of all parts of a split model, by the name of one of them: NAME-00002-of-00003.gguf. Only itself, where it is named otherwise.
std::vector<std::string> parts_of(const std::string& path) {
  static const std::regex form("^(.*-)(\\d{5})(-of-)(\\d{5})(\\.gguf)$");
  std::smatch found;
  const int count = std::regex_match(path, found, form) ? std::stoi(found[4]) : 1;
  if (count <= 1 || count > parts_max) return {path};
  std::vector<std::string> paths;
  for (int number = 1; number <= count; number++) {
    std::string digits = std::to_string(number);
    digits.insert(0, 5 - digits.size(), '0');
    paths.push_back(found[1].str() + digits + found[3].str() + found[4].str() + found[5].str());
  }
  return paths;
}

Status check_all_are_there(const std::vector<std::string>& paths) {
  std::string missing;
  for (const std::string& path : paths)
    if (!std::filesystem::exists(path)) missing += (missing.empty() ? "" : ", ") + path;
  if (missing.empty() || paths.size() == 1) return Status();
  return Status::error(text("of the model's ", paths.size(), " files these are missing: ", missing, "; put all of them into one folder"));
}

// What a part says of itself must be what its name says.
Status check_part(const ModelFile& part, const std::string& path, int64_t number, int64_t count) {
  const int64_t own_number = part.integer("split.no").value_or(0), own_count = part.integer("split.count").value_or(1);
  if (own_count <= 1 && count == 1) return Status();
  if (count == 1)
    return Status::error(text(path, " is one of ", own_count, " files of a model, which are found by their names: give it its name back, NAME-",
                              "00001-of-00002.gguf with its own numbers"));
  if (own_number == number && own_count == count) return Status();
  return Status::error(text(path, " says that it is part ", own_number + 1, " of ", own_count, ", which is not what its name says"));
}

}  // namespace

Result<std::unique_ptr<ModelFile>> read_gguf(const std::string& path) {
  const std::vector<std::string> paths = parts_of(path);
  if (Status status = check_all_are_there(paths); !status.ok()) return status;
  auto model = std::make_unique<ModelFile>(path);
  for (size_t i = 0; i < paths.size(); i++) {
    auto opened = MappedFile::open(paths[i]);
    if (!opened.ok()) return opened.status();
    // The first part has the metadata of all.
    ModelFile later(paths[i]);
    ModelFile& part = i == 0 ? *model : later;
    if (Status status = GgufReader(model->hold(opened.take()), part).read(); !status.ok()) return status;
    if (Status status = check_part(part, paths[i], static_cast<int64_t>(i), static_cast<int64_t>(paths.size())); !status.ok()) return status;
    for (const FileTensor& tensor : later.tensors())
      if (!model->add(tensor)) return Status::error(paths[i] + " has the tensor " + tensor.name + ", which another part has too");
  }
  const int64_t tensors = static_cast<int64_t>(model->tensors().size());
  if (const int64_t claimed = model->integer("split.tensors.count").value_or(tensors); claimed != tensors)
    return Status::error(text(path, " claims ", claimed, " tensors in all of the model's files, which have ", tensors));
  name_rope_style(*model);
  return model;
}

}  // namespace millrace
