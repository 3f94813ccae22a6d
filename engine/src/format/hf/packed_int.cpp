#include "packed_int.h"

#include <cstring>
#include <memory>

#include "../../base/text.h"

namespace millrace {
namespace {

// 32-bit words that need not be aligned.
class Words {
 public:
  Words() = default;
  Words(const StoredTensor& stored, int bits) : bytes_(stored.bytes.data()), bits_(bits) {}

  uint32_t word(int64_t index) const {
    uint32_t word;
    std::memcpy(&word, bytes_ + 4 * index, sizeof(word));
    return word;
  }
  int quant(int64_t index, int place) const { return static_cast<int>((word(index) >> (place * bits_)) & ((1u << bits_) - 1)); }

 private:
  const uint8_t* bytes_ = nullptr;
  int bits_ = 4;
};

// Where an AWQ word holds row i of its eight.
constexpr int awq_place[8] = {0, 4, 1, 5, 2, 6, 3, 7};

// What the layouts have in common.
struct Packed {
  int64_t rows = 0, columns = 0, groups = 0;
  int pack = 8;  // quants a word
  Words quants, zeros;
  bool has_zeros = false;
  std::vector<float> scales;
  std::vector<int32_t> group_of;  // [columns]
};

const StoredTensor* find(const Parameters& parameters, const char* name) {
  const auto found = parameters.find(name);
  return found == parameters.end() ? nullptr : found->second;
}

bool is_matrix(const StoredTensor* stored, const char* dtype) {
  return stored != nullptr && stored->dtype == dtype && stored->shape.size() == 2 && stored->values() > 0;
}

bool has_shape(const StoredTensor& stored, int64_t rows, int64_t columns) { return stored.shape == std::vector<int64_t>{rows, columns}; }

// Which group each column is in: evenly, or as g_idx has it.
Status read_groups(Packed& packed, const StoredTensor* g_idx) {
  packed.group_of.resize(static_cast<size_t>(packed.columns));
  if (g_idx == nullptr) {
    if (packed.columns % packed.groups != 0) return Status::error(text("has ", packed.groups, " groups of ", packed.columns, " columns"));
    for (int64_t c = 0; c < packed.columns; c++) packed.group_of[static_cast<size_t>(c)] = static_cast<int32_t>(c / (packed.columns / packed.groups));
    return Status();
  }
  if (g_idx->dtype != "I32" || g_idx->values() != packed.columns) return Status::error(text("has a g_idx of ", g_idx->values(), " for ", packed.columns, " columns"));
  const Words indices(*g_idx, 8);
  for (int64_t c = 0; c < packed.columns; c++) {
    const uint32_t group = indices.word(c);
    if (group >= static_cast<uint64_t>(packed.groups)) return Status::error(text("has column ", c, " in group ", group, " of ", packed.groups));
    packed.group_of[static_cast<size_t>(c)] = static_cast<int32_t>(group);
  }
  return Status();
}

template <typename Derive>
FileTensor computed(std::shared_ptr<const Packed> packed, std::string kind, Derive derive) {
  FileTensor tensor;
  tensor.type = Type::derived;
  tensor.kind = std::move(kind);
  tensor.shape = {packed->columns, packed->rows, 1, 1};
  tensor.derive = [packed, derive](int64_t row, float* values) { derive(*packed, row, values); };
  return tensor;
}

Status shapes_differ() { return Status::error("has packed integers, zero points and scales whose types or shapes do not belong together"); }

}  // namespace

Result<FileTensor> read_gptq(const HfQuantization& quantization, const Parameters& parameters) {
  const StoredTensor *quants = find(parameters, "qweight"), *zeros = find(parameters, "qzeros"), *scales = find(parameters, "scales");
  if (!is_matrix(quants, "I32") || !is_matrix(zeros, "I32") || scales == nullptr || scales->shape.size() != 2) return shapes_differ();
  auto packed = std::make_shared<Packed>();
  packed->pack = 32 / quantization.bits;
  packed->columns = quants->shape[0] * packed->pack;
  packed->rows = quants->shape[1];
  packed->groups = scales->shape[0];
  if (packed->groups < 1 || packed->rows % packed->pack != 0 || !has_shape(*scales, packed->groups, packed->rows) || !has_shape(*zeros, packed->groups, packed->rows / packed->pack))
    return shapes_differ();
  auto values = floats_of(*scales);
  if (!values.ok()) return values.status();
  packed->scales = values.take();
  packed->quants = Words(*quants, quantization.bits);
  packed->zeros = Words(*zeros, quantization.bits);
  if (Status status = read_groups(*packed, find(parameters, "g_idx")); !status.ok()) return status;
  const int less = quantization.zeros_less_one ? 1 : 0;
  return computed(std::move(packed), text("GPTQ in ", quantization.bits, " bits"), [less](const Packed& p, int64_t row, float* out) {
    const int place = static_cast<int>(row % p.pack);
    for (int64_t c = 0; c < p.columns; c++) {
      const int64_t group = p.group_of[static_cast<size_t>(c)];
      const int quant = p.quants.quant(c / p.pack * p.rows + row, static_cast<int>(c % p.pack));
      const int zero = p.zeros.quant(group * (p.rows / p.pack) + row / p.pack, place) + less;
      out[c] = p.scales[static_cast<size_t>(group * p.rows + row)] * static_cast<float>(quant - zero);
    }
  });
}

Result<FileTensor> read_awq(const HfQuantization& quantization, const Parameters& parameters) {
  const StoredTensor *quants = find(parameters, "qweight"), *zeros = find(parameters, "qzeros"), *scales = find(parameters, "scales");
  if (!is_matrix(quants, "I32") || !is_matrix(zeros, "I32") || scales == nullptr || scales->shape.size() != 2) return shapes_differ();
  auto packed = std::make_shared<Packed>();
  packed->columns = quants->shape[0];
  packed->rows = quants->shape[1] * packed->pack;
  packed->groups = scales->shape[0];
  if (packed->groups < 1 || !has_shape(*scales, packed->groups, packed->rows) || !has_shape(*zeros, packed->groups, packed->rows / packed->pack)) return shapes_differ();
  auto values = floats_of(*scales);
  if (!values.ok()) return values.status();
  packed->scales = values.take();
  packed->quants = Words(*quants, quantization.bits);
  packed->zeros = Words(*zeros, quantization.bits);
  if (Status status = read_groups(*packed, nullptr); !status.ok()) return status;
  return computed(std::move(packed), "AWQ in 4 bits", [](const Packed& p, int64_t row, float* out) {
    const int64_t words = p.rows / p.pack, word = row / p.pack;
    const int place = awq_place[row % p.pack];
    for (int64_t c = 0; c < p.columns; c++) {
      const int64_t group = p.group_of[static_cast<size_t>(c)];
      const int difference = p.quants.quant(c * words + word, place) - p.zeros.quant(group * words + word, place);
      out[c] = p.scales[static_cast<size_t>(group * p.rows + row)] * static_cast<float>(difference);
    }
  });
}

Result<FileTensor> read_packed(const HfQuantization& quantization, const Parameters& parameters) {
  const StoredTensor *quants = find(parameters, "weight_packed"), *scales = find(parameters, "weight_scale"), *shape = find(parameters, "weight_shape");
  const StoredTensor* zeros = find(parameters, "weight_zero_point");
  if (!is_matrix(quants, "I32") || scales == nullptr || scales->shape.empty() || shape == nullptr || shape->dtype != "I64" || shape->values() != 2) return shapes_differ();
  auto packed = std::make_shared<Packed>();
  packed->pack = 32 / quantization.bits;
  int64_t size[2];
  std::memcpy(size, shape->bytes.data(), sizeof(size));
  packed->rows = size[0];
  packed->columns = size[1];
  if (packed->rows < 1 || packed->columns < 1 || packed->columns > quants->shape[1] * packed->pack || !has_shape(*quants, packed->rows, (packed->columns + packed->pack - 1) / packed->pack))
    return shapes_differ();
  packed->groups = scales->values() / packed->rows;
  // One scale for all of a tensor is not what this format makes.
  if (packed->groups < 1 || scales->values() != packed->groups * packed->rows) return shapes_differ();
  packed->has_zeros = zeros != nullptr;
  const int64_t words_of_rows = (packed->rows + packed->pack - 1) / packed->pack;
  if (zeros != nullptr && (!is_matrix(zeros, "I32") || !has_shape(*zeros, words_of_rows, packed->groups))) return shapes_differ();
  auto values = floats_of(*scales);
  if (!values.ok()) return values.status();
  packed->scales = values.take();
  packed->quants = Words(*quants, quantization.bits);
  if (zeros != nullptr) packed->zeros = Words(*zeros, quantization.bits);
  if (Status status = read_groups(*packed, find(parameters, "weight_g_idx")); !status.ok()) return status;
  const int middle = 1 << (quantization.bits - 1);
  return computed(std::move(packed), text("compressed-tensors in ", quantization.bits, " bits"), [middle](const Packed& p, int64_t row, float* out) {
    const int64_t words = (p.columns + p.pack - 1) / p.pack;
    for (int64_t c = 0; c < p.columns; c++) {
      const int64_t group = p.group_of[static_cast<size_t>(c)];
      const int zero = p.has_zeros ? p.zeros.quant(row / p.pack * p.groups + group, static_cast<int>(row % p.pack)) : middle;
      out[c] = p.scales[static_cast<size_t>(row * p.groups + group)] * static_cast<float>(p.quants.quant(row * words + c / p.pack, static_cast<int>(c % p.pack)) - zero);
    }
  });
}

}  // namespace millrace
