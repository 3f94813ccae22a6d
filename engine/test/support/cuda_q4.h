// Matrices in four bits as q4.h describes their bytes, read and written one value at a time, and not as kernels do.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "cuda/q4.h"
#include "random.h"

namespace millrace::test {

struct Q4Value {
  int quant;
  float scale, minimum;
  double exact() const { return double{scale} * quant + minimum; }
  // Rounded once, as kernels multiply it.
  float as_half() const { return __half2float(__double2half(exact())); }
};

inline Q4Value q4_value(const std::vector<uint8_t>& bytes, int columns, int row, int column) {
  const int pieces = (columns + 127) / 128, lane = row % 8 * 4 + column / 32 % 4, place = column % 32;
  const int word = column / 32 % 2 == 0 ? place / 8 : (place / 8 + 2) % 4;
  const uint8_t* piece = bytes.data() + (static_cast<size_t>(row / 8) * static_cast<size_t>(pieces) + static_cast<size_t>(column / 128)) * 640;
  uint32_t quants;
  __half scales[2];
  std::memcpy(&quants, piece + 16 * lane + 4 * word, sizeof quants);
  std::memcpy(scales, piece + 512 + 4 * lane, sizeof scales);
  const int shift = place % 2 * 16 + place % 8 / 2 * 4;
  return {static_cast<int>(quants >> shift & 15), __half2float(scales[0]), __half2float(scales[1])};
}

// Random weights of deviation 1 / sqrt(columns) or so. Groups beyond the columns have random quants, times 0; rows beyond the last are NaNs.
inline std::vector<uint8_t> random_q4(Random& random, int rows, int columns) {
  const int pieces = q4_pieces(columns);
  std::vector<uint8_t> bytes(static_cast<size_t>((rows + 7) / 8 * pieces) * 640);
  for (size_t at = 0; at < bytes.size(); at += 8) {
    const uint64_t drawn = random.next();
    std::memcpy(&bytes[at], &drawn, sizeof drawn);
  }
  for (int piece = 0; piece < static_cast<int>(bytes.size() / 640); piece++)
    for (int lane = 0; lane < 32; lane++) {
      const int row = piece / pieces * 8 + lane / 4, column = piece % pieces * 128 + lane % 4 * 32;
      const float scale = static_cast<float>((0.5 + random.uniform()) * (random.chance(0.1) ? -1 : 1) / (5 * std::sqrt(columns)));
      __half scales[2] = {__float2half(scale), __float2half(scale * static_cast<float>(-7 - random.uniform()))};
      if (column >= columns) scales[0] = scales[1] = __float2half(0);
      if (row >= rows) scales[0] = scales[1] = __float2half(NAN);
      std::memcpy(&bytes[static_cast<size_t>(piece) * 640 + 512 + static_cast<size_t>(lane) * 4], scales, sizeof scales);
    }
  return bytes;
}

}  // namespace millrace::test
