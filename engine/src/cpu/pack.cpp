#include "pack.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "../base/text.h"
#include "convert.h"

namespace millrace {
namespace {

constexpr size_t cache_line = 64;

// Packings to try, the smallest first; the last loses nothing.
std::vector<Packing> packings_of(Type type) {
  if (converts_to_q4(type)) return {Packing::q4, Packing::f32};
  // A power of two with two bits of mantissa fits bfloat16 where it is too large or small for float16.
  if (type == Type::mxfp4) return {Packing::q8, Packing::bf16};
  if (converts_to_q8(type)) return {Packing::q8, Packing::f32};
  if (type == Type::bf16) return {Packing::bf16};
  if (type == Type::f32) return {Packing::f32};
  return {Packing::f16, Packing::f32};
}

std::vector<Packing> packings_of(const std::vector<const FileTensor*>& tensors, bool as_float32) {
  if (as_float32) return {Packing::f32};
  if (can_pack_together(tensors)) return packings_of(tensors[0]->type);
  for (const FileTensor* tensor : tensors)
    if (tensor->type == Type::f32 || tensor->type == Type::bf16) return {Packing::f32};
  return {Packing::f16, Packing::f32};
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

void put_block(const BlockQ4_1& block, int row, BandQ4& band) {
  band.scale[row] = block.scale;
  band.minimum[row] = block.minimum;
  for (int j = 0; j < 4; j++) std::memcpy(&band.nibbles[j][4 * row], &block.nibbles[4 * j], 4);
}

void put_block(const BlockQ8_0& block, int row, BandQ8& band) {
  band.scale[row] = block.scale;
  for (int j = 0; j < 8; j++) std::memcpy(&band.quants[j][4 * row], &block.quants[4 * j], 4);
}

template <typename Element>
void put_column_major(const Element* values, int columns, int row, uint8_t* band) {
  Element* out = reinterpret_cast<Element*>(band);
  for (int column = 0; column < columns; column++) out[column * band_rows + row] = values[column];
}

// Cuts a float to bfloat16; whether that is exact is for the caller to see.
uint16_t cut_to_bfloat(float value) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16); }

// Puts rows of tensors into bands. Holds what one row needs on the way.
class RowPacker {
 public:
  RowPacker(Packing packing, int columns) : packing_(packing), columns_(columns), values_(columns), halves_(columns) {
    if (packing == Packing::q4) q4_.resize(columns / block_values);
    if (packing == Packing::q8) q8_.resize(columns / block_values);
  }

  // Writes one row of a tensor as row `row` of a band. The error is relative; see pack_error_max.
  float put(const FileTensor& tensor, int64_t index, int row, uint8_t* band) {
    switch (packing_) {
      case Packing::q4: {
        const float error = convert_to_q4(tensor.type, tensor.row(index), columns_, q4_.data());
        for (size_t b = 0; b < q4_.size(); b++) put_block(q4_[b], row, reinterpret_cast<BandQ4*>(band)[b]);
        return error;
      }
      case Packing::q8: {
        const float error = convert_to_q8(tensor.type, tensor.row(index), columns_, q8_.data());
        for (size_t b = 0; b < q8_.size(); b++) put_block(q8_[b], row, reinterpret_cast<BandQ8*>(band)[b]);
        return error;
      }
      case Packing::f16:
        return tensor.type == Type::f16 ? put_as_stored(tensor, index, row, band) : put_rounded(tensor, index, row, band, float_to_half, half_to_float);
      case Packing::bf16:
        return tensor.type == Type::bf16 ? put_as_stored(tensor, index, row, band) : put_rounded(tensor, index, row, band, cut_to_bfloat, bfloat_to_float);
      case Packing::f32:
        read_row(tensor, index, values_.data());
        put_column_major(values_.data(), columns_, row, band);
        return 0;
    }
    return 0;
  }

 private:
  float put_as_stored(const FileTensor& tensor, int64_t index, int row, uint8_t* band) {
    put_column_major(reinterpret_cast<const uint16_t*>(tensor.row(index)), columns_, row, band);
    return 0;
  }

  float put_rounded(const FileTensor& tensor, int64_t index, int row, uint8_t* band, uint16_t (*round)(float), float (*widen)(uint16_t)) {
    read_row(tensor, index, values_.data());
    float largest = 0, error = 0;
    bool finite = true;
    for (int i = 0; i < columns_; i++) {
      halves_[i] = round(values_[i]);
      const float lost = std::fabs(widen(halves_[i]) - values_[i]);
      finite = finite && lost <= std::numeric_limits<float>::max();
      largest = std::max(largest, std::fabs(values_[i]));
      error = std::max(error, lost);
    }
    put_column_major(halves_.data(), columns_, row, band);
    if (!finite) return std::numeric_limits<float>::infinity();
    return error == 0 ? 0 : error / largest;
  }

  Packing packing_;
  int columns_;
  std::vector<float> values_;
  std::vector<uint16_t> halves_;
  std::vector<BlockQ4_1> q4_;
  std::vector<BlockQ8_0> q8_;
};

PackedMatrix lay_out(const std::vector<const FileTensor*>& tensors, bool interleaved, Packing packing) {
  PackedMatrix matrix;
  matrix.packing = packing;
  matrix.columns = static_cast<int>(tensors[0]->columns());
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
  return matrix;
}

// Fills the bands; errors[t] becomes the largest of tensor t. Stops where one is too large.
bool fill(PackedMatrix& matrix, const std::vector<const FileTensor*>& tensors, bool interleaved, std::vector<float>& errors) {
  RowPacker packer(matrix.packing, matrix.columns);
  const int count = static_cast<int>(tensors.size());
  int first_band = 0;
  for (int t = 0; t < count; t++) {
    errors[t] = 0;
    for (int64_t row = 0; row < tensors[t]->rows(); row++) {
      const int own_band = static_cast<int>(row) / band_rows;
      const int band = interleaved ? own_band * count + t : first_band + own_band;
      const float error = packer.put(*tensors[t], row, static_cast<int>(row) % band_rows, matrix.bytes.get() + band * matrix.band_bytes);
      errors[t] = std::max(errors[t], error);
      if (!(error <= pack_error_max) && matrix.packing != Packing::f32) return false;
    }
    first_band += (static_cast<int>(tensors[t]->rows()) + band_rows - 1) / band_rows;
  }
  return true;
}

}  // namespace

bool can_pack_together(const std::vector<const FileTensor*>& tensors) {
  for (const FileTensor* tensor : tensors)
    if (packings_of(tensor->type) != packings_of(tensors[0]->type) || tensor->columns() != tensors[0]->columns()) return false;
  return true;
}

PackedMatrix pack(const std::vector<const FileTensor*>& tensors, bool interleaved, bool as_float32, PackLog* log) {
  std::vector<float> errors(tensors.size());
  PackedMatrix matrix;
  for (const Packing packing : packings_of(tensors, as_float32)) {
    matrix = lay_out(tensors, interleaved, packing);
    if (fill(matrix, tensors, interleaved, errors)) break;
  }
  if (log != nullptr)
    for (size_t t = 0; t < tensors.size(); t++) log->note(*tensors[t], matrix.packing, errors[t]);
  return matrix;
}

}  // namespace millrace
