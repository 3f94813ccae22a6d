#include "fp8.h"

#include <array>
#include <cmath>
#include <limits>
#include <memory>

#include "../../base/text.h"

namespace millrace {

float e4m3_to_float(uint8_t bits) {
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9) : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return bits & 0x80 ? -magnitude : magnitude;
}

namespace {

const std::array<float, 256>& e4m3_values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> all;
    for (int bits = 0; bits < 256; bits++) all[static_cast<size_t>(bits)] = e4m3_to_float(static_cast<uint8_t>(bits));
    return all;
  }();
  return values;
}

}  // namespace

Result<FileTensor> read_fp8(const HfQuantization& quantization, const Parameters& parameters) {
  const auto weight = parameters.find("weight");
  auto scale = parameters.find("weight_scale");
  if (scale == parameters.end()) scale = parameters.find("weight_scale_inv");
  if (weight == parameters.end() || scale == parameters.end()) return Status::error("lacks its weight or its weight_scale");
  const StoredTensor& stored = *weight->second;
  if (stored.dtype != "F8_E4M3") return Status::error("has values of type " + stored.dtype + " with a scale, where F8_E4M3 are read");
  if (stored.shape.size() != 2 || stored.values() == 0) return Status::error("has no rows and columns");
  const int64_t rows = stored.shape[0], columns = stored.shape[1], count = scale->second->values();
  auto read = floats_of(*scale->second);
  if (!read.ok()) return read.status();

  // A scale's block, in rows and columns.
  int64_t block_rows = rows, block_columns = columns;
  if (count == rows && count != 1) {
    block_rows = 1;
  } else if (count != 1) {
    block_rows = quantization.block_rows;
    block_columns = quantization.block_columns;
    if (block_rows < 1 || block_columns < 1 || (rows + block_rows - 1) / block_rows * ((columns + block_columns - 1) / block_columns) != count)
      return Status::error(text("has ", count, " scales for ", rows, " x ", columns, " values in blocks of ", block_rows, " x ", block_columns));
  }
  FileTensor tensor;
  tensor.type = Type::derived;
  tensor.kind = "FP8";
  tensor.shape = {columns, rows, 1, 1};
  const auto scales = std::make_shared<const std::vector<float>>(read.take());
  const int64_t blocks_a_row = (columns + block_columns - 1) / block_columns;
  tensor.derive = [bytes = stored.bytes.data(), scales, columns, block_rows, block_columns, blocks_a_row](int64_t row, float* values) {
    const std::array<float, 256>& table = e4m3_values();
    const float* own = scales->data() + row / block_rows * blocks_a_row;
    for (int64_t c = 0; c < columns; c++) values[c] = table[bytes[row * columns + c]] * own[c / block_columns];
  };
  if (block_columns == columns)
    tensor.e4m3 = [bytes = stored.bytes.data(), scales, columns, block_rows](int64_t row) {
      return E4m3Row{bytes + row * columns, (*scales)[static_cast<size_t>(row / block_rows)]};
    };
  return tensor;
}

}  // namespace millrace
