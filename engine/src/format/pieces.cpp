#include "pieces.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace millrace {
namespace {

// One row, through the mapping.
void put_row(const FileTensor& tensor, int64_t row, int columns, std::vector<float>& values, uint8_t* to) {
  const auto own = static_cast<size_t>(tensor.columns());
  if (tensor.type == Type::bf16) {
    std::memcpy(to, tensor.row(row), own * 2);
  } else {
    values.resize(own);
    read_row(tensor, row, values.data());
    auto* rounded = reinterpret_cast<uint16_t*>(to);
    for (size_t i = 0; i < own; i++) rounded[i] = float_to_bfloat(values[i]);
  }
  std::memset(to + own * 2, 0, (static_cast<size_t>(columns) - own) * 2);
}

}  // namespace

std::vector<Piece> cut_rows(const std::vector<const FileTensor*>& tensors, int64_t row_bytes, int64_t bytes_max) {
  assert(row_bytes <= bytes_max);
  const int64_t most = bytes_max / row_bytes;
  std::vector<Piece> pieces;
  int64_t begun = 0;  // rows of the tensors before this one
  for (const FileTensor* tensor : tensors) {
    const int64_t rows = tensor->rows(), count = (rows + most - 1) / most;
    // As even as may be, so that none of them is hardly worth its copy.
    for (int64_t i = 0; i < count; i++) {
      const int64_t first = rows * i / count;
      pieces.push_back({tensor, first, rows * (i + 1) / count - first, begun + first});
    }
    begun += rows;
  }
  return pieces;
}

Status read_bfloats(const ModelFile& file, const Piece& piece, int columns, uint8_t* to) {
  const FileTensor& tensor = *piece.tensor;
  if (tensor.type == Type::bf16 && tensor.places.empty() && tensor.columns() == columns)
    return file.read(tensor.row(piece.first), static_cast<size_t>(piece.count * tensor.row_bytes()), to);
  std::vector<float> values;
  for (int64_t row = 0; row < piece.count; row++) put_row(tensor, piece.first + row, columns, values, to + row * columns * 2);
  return Status();
}

Status read_e4m3(const ModelFile& file, const Piece& piece, int columns, uint8_t* to, float* scales) {
  const int64_t width = piece.tensor->columns();
  const auto own = [&](int64_t row) { return piece.tensor->e4m3(piece.first + row); };
  for (int64_t row = 0; row < piece.count; row++) {
    scales[row] = own(row).scale;
    std::memset(to + row * columns + width, 0, static_cast<size_t>(columns - width));
  }
  for (int64_t row = 0, end = 0; row < piece.count; row = end) {
    // Rows that lie in the file as they are to lie are read in one.
    const uint8_t* from = own(row).bits;
    for (end = row + 1; end < piece.count && width == columns && own(end).bits == from + (end - row) * width; end++) continue;
    if (Status status = file.read(from, static_cast<size_t>((end - row) * width), to + row * columns); !status.ok()) return status;
  }
  return Status();
}

}  // namespace millrace
