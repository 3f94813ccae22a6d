#include "pack.h"

#include <cassert>
#include <cstdlib>
#include <cstring>
#include <new>

namespace millrace {
namespace {

constexpr size_t cache_line = 64;

Packing packing_of(Type type, bool as_float32) {
  if (as_float32) return Packing::f32;
  switch (type) {
    case Type::q4_0:
    case Type::q4_1:
      return Packing::q4;
    case Type::q8_0:
      return Packing::q8;
    case Type::f16:
      return Packing::f16;
    case Type::bf16:
      return Packing::bf16;
    case Type::f32:
    case Type::derived:
      break;
  }
  return Packing::f32;
}

int64_t band_bytes_of(Packing packing, int columns) {
  switch (packing) {
    case Packing::q4:
      return int64_t{columns} / block_values * static_cast<int64_t>(sizeof(BandQ4));
    case Packing::q8:
      return int64_t{columns} / block_values * static_cast<int64_t>(sizeof(BandQ8));
    case Packing::f16:
    case Packing::bf16:
      return int64_t{columns} * band_rows * 2;
    case Packing::f32:
      break;
  }
  return int64_t{columns} * band_rows * 4;
}

void put_q4_1(const BlockQ4_1& block, int row, BandQ4& band) {
  band.scale[row] = block.scale;
  band.minimum[row] = block.minimum;
  for (int j = 0; j < 4; j++) std::memcpy(&band.nibbles[j][4 * row], &block.nibbles[4 * j], 4);
}

void put_q4_0(const BlockQ4_0& block, int row, BandQ4& band) {
  band.scale[row] = block.scale;
  band.minimum[row] = float_to_half(-8 * half_to_float(block.scale));  // exact: only the exponent changes
  for (int j = 0; j < 4; j++) std::memcpy(&band.nibbles[j][4 * row], &block.nibbles[4 * j], 4);
}

void put_q8_0(const BlockQ8_0& block, int row, BandQ8& band) {
  band.scale[row] = block.scale;
  for (int j = 0; j < 8; j++) std::memcpy(&band.quants[j][4 * row], &block.quants[4 * j], 4);
}

template <typename Element>
void put_column_major(const Element* values, int columns, int row, uint8_t* band) {
  Element* out = reinterpret_cast<Element*>(band);
  for (int column = 0; column < columns; column++) out[column * band_rows + row] = values[column];
}

// Writes one row of a tensor as row `row` of a band.
void put_row(const FileTensor& tensor, int64_t index, int row, Packing packing, uint8_t* band, std::vector<float>& scratch) {
  const int columns = static_cast<int>(tensor.columns()), blocks = columns / values_a_block(tensor.type);
  const uint8_t* stored = tensor.row(index);
  switch (packing) {
    case Packing::q4:
      for (int b = 0; b < blocks; b++) {
        if (tensor.type == Type::q4_1)
          put_q4_1(reinterpret_cast<const BlockQ4_1*>(stored)[b], row, reinterpret_cast<BandQ4*>(band)[b]);
        else
          put_q4_0(reinterpret_cast<const BlockQ4_0*>(stored)[b], row, reinterpret_cast<BandQ4*>(band)[b]);
      }
      return;
    case Packing::q8:
      for (int b = 0; b < blocks; b++) put_q8_0(reinterpret_cast<const BlockQ8_0*>(stored)[b], row, reinterpret_cast<BandQ8*>(band)[b]);
      return;
    case Packing::f16:
    case Packing::bf16:
      put_column_major(reinterpret_cast<const uint16_t*>(stored), columns, row, band);
      return;
    case Packing::f32:
      scratch.resize(columns);
      read_row(tensor, index, scratch.data());
      put_column_major(scratch.data(), columns, row, band);
      return;
  }
}

}  // namespace

bool can_pack_together(const std::vector<const FileTensor*>& tensors) {
  for (const FileTensor* tensor : tensors)
    if (packing_of(tensor->type, false) != packing_of(tensors[0]->type, false) || tensor->columns() != tensors[0]->columns()) return false;
  return true;
}

PackedMatrix pack(const std::vector<const FileTensor*>& tensors, bool interleaved, bool as_float32) {
  PackedMatrix matrix;
  matrix.packing = packing_of(tensors[0]->type, as_float32 || !can_pack_together(tensors));
  matrix.columns = static_cast<int>(tensors[0]->columns());
  const int count = static_cast<int>(tensors.size());
  for (const FileTensor* tensor : tensors) {
    const int rows = static_cast<int>(tensor->rows());
    // Where tensors follow one another, only the last may leave a band unfilled; interleaved ones each pad their own.
    assert(interleaved || tensor == tensors.back() || rows % band_rows == 0);
    matrix.rows += rows;
    matrix.bands += (rows + band_rows - 1) / band_rows;
  }
  matrix.band_bytes = band_bytes_of(matrix.packing, matrix.columns);
  const size_t bytes = static_cast<size_t>(matrix.band_bytes * matrix.bands + static_cast<int64_t>(cache_line) - 1) / cache_line * cache_line;
  void* memory = std::aligned_alloc(cache_line, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, bytes);
  matrix.bytes = {static_cast<uint8_t*>(memory), [](uint8_t* pointer) { std::free(pointer); }};

  std::vector<float> scratch;
  int first_band = 0;
  for (int t = 0; t < count; t++) {
    for (int64_t row = 0; row < tensors[t]->rows(); row++) {
      const int own_band = static_cast<int>(row) / band_rows;
      const int band = interleaved ? own_band * count + t : first_band + own_band;
      put_row(*tensors[t], row, static_cast<int>(row) % band_rows, matrix.packing, matrix.bytes.get() + band * matrix.band_bytes, scratch);
    }
    first_band += (static_cast<int>(tensors[t]->rows()) + band_rows - 1) / band_rows;
  }
  return matrix;
}

}  // namespace millrace
