#include "gguf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "../base/text.h"

namespace millrace {
namespace {

constexpr uint32_t magic = 0x46554747;  // "GGUF"
constexpr uint64_t tensors_max = 1 << 20, keys_max = 1 << 20, name_bytes_max = 1 << 16;
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

}  // namespace

// Reads the header from front to back. The first thing that is wrong is kept, and everything after it reads as zero.
class GgufReader {
 public:
  GgufReader(GgufFile& file) : file_(file) {}

  Status read() {
    if (file_.size_ < 24) return wrong("has only " + std::to_string(file_.size_) + " bytes, too few for a GGUF header");
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
  Status wrong(const std::string& what) const { return Status::error(file_.path_ + " " + what); }

  void fail(const std::string& what) {
    if (error_.empty()) error_ = what;
  }

  bool has(uint64_t bytes) {
    if (bytes <= file_.size_ - at_) return true;
    fail(text("ends at byte ", file_.size_, ", inside its header at byte ", at_, ": the file is cut short; fetch it again"));
    return false;
  }

  template <typename Number>
  Number take() {
    Number value{};
    if (!error_.empty() || !has(sizeof(value))) return value;
    std::memcpy(&value, file_.map_ + at_, sizeof(value));
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
    std::string value(reinterpret_cast<const char*>(file_.map_ + at_), length);
    at_ += length;
    return value;
  }

  // One number of any kind, as a double; integers up to 64 bits also as they are.
  GgufFile::Value take_scalar(Kind kind) {
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
        return take_string(file_.size_);
      case Kind::array:
        break;
    }
    fail(text("has a value of unknown kind ", static_cast<uint32_t>(kind), " at byte ", at_));
    return int64_t{0};
  }

  void read_pair() {
    const std::string key = take_string(name_bytes_max);
    const Kind kind = static_cast<Kind>(take<uint32_t>());
    GgufFile::Value value = kind == Kind::array ? take_array(key) : take_scalar(kind);
    if (error_.empty() && !file_.metadata_.emplace(key, std::move(value)).second) fail("has the key " + key + " twice");
  }

  GgufFile::Value take_array(const std::string& key) {
    const Kind kind = static_cast<Kind>(take<uint32_t>());
    const uint64_t count = take<uint64_t>();
    const int width = bytes_of(kind);
    if (kind == Kind::array || width < 0) fail("has an array of unknown kind under " + key);
    // A string takes its 8 bytes of length at least: so many can there be at most.
    if (!error_.empty() || count > (file_.size_ - at_) / (width > 0 ? width : 8)) {
      fail(text("claims ", count, " items under ", key, ", more than the file has bytes for: it is cut short or damaged"));
      return int64_t{0};
    }
    if (kind == Kind::string) {
      std::vector<std::string> values;
      values.reserve(count);
      for (uint64_t i = 0; i < count && error_.empty(); i++) values.push_back(take_string(file_.size_));
      return values;
    }
    std::vector<double> values;
    values.reserve(count);
    for (uint64_t i = 0; i < count && error_.empty(); i++) {
      const GgufFile::Value value = take_scalar(kind);
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
      fail(text("has tensor ", tensor.name, " in type ", name_of(type), "; F32, F16, BF16, Q8_0, Q4_0 and Q4_1 are read"));
    tensor.type = static_cast<Type>(type);
    offsets_.push_back(take<uint64_t>());
    if (!error_.empty()) return;
    if (tensor.shape[0] % values_a_block(tensor.type) != 0)
      fail(text("has tensor ", tensor.name, " with rows of ", tensor.shape[0], " values, no multiple of its block of 32"));
    if (!file_.tensor_index_.emplace(tensor.name, file_.tensors_.size()).second) fail("has the tensor " + tensor.name + " twice");
    file_.tensors_.push_back(std::move(tensor));
  }

  // Data begins at the next multiple of the alignment after the header.
  void place_tensors() {
    const uint64_t alignment = static_cast<uint64_t>(file_.integer("general.alignment").value_or(32));
    // Below 8, which the format forbids, a tensor's numbers could lie where they must not be read from.
    if (alignment < 8 || alignment > 1 << 20 || (alignment & (alignment - 1)) != 0)
      return fail(text("has an alignment of ", alignment, ", not a power of two from 8 to ", 1 << 20));
    const uint64_t data = (at_ + alignment - 1) / alignment * alignment;
    for (size_t i = 0; i < file_.tensors_.size(); i++) {
      FileTensor& tensor = file_.tensors_[i];
      const uint64_t bytes = static_cast<uint64_t>(tensor.row_bytes()) * static_cast<uint64_t>(tensor.rows());
      const uint64_t room = data < file_.size_ ? file_.size_ - data : 0;
      if (offsets_[i] % alignment != 0) return fail(text("places tensor ", tensor.name, " at ", offsets_[i], ", not aligned to ", alignment));
      if (bytes > room || offsets_[i] > room - bytes)
        return fail(text("has only ", file_.size_, " bytes, but tensor ", tensor.name, " ends at byte ", data + offsets_[i] + bytes,
                         ": the file is cut short; fetch it again"));
      tensor.bytes = file_.map_ + data + offsets_[i];
    }
  }

  GgufFile& file_;
  uint64_t at_ = 0;
  std::vector<uint64_t> offsets_;
  std::string error_;
};

Result<std::unique_ptr<GgufFile>> GgufFile::open(const std::string& path) {
  std::unique_ptr<GgufFile> file(new GgufFile());
  file->path_ = path;
  // Without O_NONBLOCK a named pipe would be waited for, perhaps for ever.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return Status::error(text(path, " cannot be opened: ", std::strerror(errno)));
  struct stat status = {};
  if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    return Status::error(path + " is not a file");
  }
  file->size_ = static_cast<uint64_t>(status.st_size);
  void* map = file->size_ > 0 ? mmap(nullptr, file->size_, PROT_READ, MAP_PRIVATE, descriptor, 0) : nullptr;
  ::close(descriptor);
  if (map == MAP_FAILED) return Status::error(text(path, " cannot be mapped: ", std::strerror(errno)));
  file->map_ = static_cast<const uint8_t*>(map);
  if (Status status = GgufReader(*file).read(); !status.ok()) return status;
  return file;
}

GgufFile::~GgufFile() {
  if (map_ != nullptr) munmap(const_cast<uint8_t*>(map_), size_);
}

template <typename Wanted>
const Wanted* GgufFile::find(const std::string& key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? nullptr : std::get_if<Wanted>(&found->second);
}

std::optional<int64_t> GgufFile::integer(const std::string& key) const {
  const auto* value = find<int64_t>(key);
  return value ? std::optional(*value) : std::nullopt;
}

std::optional<double> GgufFile::number(const std::string& key) const {
  if (const auto* value = find<double>(key)) return *value;
  if (const auto* value = find<int64_t>(key)) return static_cast<double>(*value);
  return std::nullopt;
}

std::optional<bool> GgufFile::boolean(const std::string& key) const {
  const auto* value = find<bool>(key);
  return value ? std::optional(*value) : std::nullopt;
}

std::optional<std::string> GgufFile::string(const std::string& key) const {
  const auto* value = find<std::string>(key);
  return value ? std::optional(*value) : std::nullopt;
}

const std::vector<std::string>& GgufFile::strings(const std::string& key) const {
  static const std::vector<std::string> none;
  const auto* value = find<std::vector<std::string>>(key);
  return value ? *value : none;
}

const std::vector<double>& GgufFile::numbers(const std::string& key) const {
  static const std::vector<double> none;
  const auto* value = find<std::vector<double>>(key);
  return value ? *value : none;
}

const FileTensor* GgufFile::tensor(const std::string& name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace millrace
