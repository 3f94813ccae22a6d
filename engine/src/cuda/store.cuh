// How a value is left for the matrix that reads it; see Activations in kernels.h.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels.h"

namespace millrace {

// Two values, the first one in the lower half.
__device__ inline uint32_t stored_pair(float first, float second, Activations as) {
  if (as == Activations::bfloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  uint32_t pair;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second / half_divisor), "f"(first / half_divisor));
  return pair;
}
__device__ inline int place_of(int column, Activations as) { return as == Activations::half ? half_place(column) : column; }
// Into a token's row; the first of a pair has an even column.
__device__ inline void store_pair(__nv_bfloat16* row, int column, float first, float second, Activations as) {
  *reinterpret_cast<uint32_t*>(row + place_of(column, as)) = stored_pair(first, second, as);
}
__device__ inline void store_value(__nv_bfloat16* row, int column, float value, Activations as) {
  *reinterpret_cast<uint16_t*>(row + place_of(column, as)) = static_cast<uint16_t>(stored_pair(value, 0, as));
}

}  // namespace millrace
