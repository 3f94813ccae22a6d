// What is left for a norm that has no kernel of its own; see NormOutput.
#pragma once

#include "store.cuh"

namespace millrace {

// Of 16 values of a token, of which each of 16 neighbouring threads has one, and the norm's weight of it; all threads of a warp come here together.
__device__ inline void leave_for_norm(const NormOutput& next, float weight, int rows, int row, int token, float value, bool exists) {
  float square = value * value;
#pragma unroll
  for (int distance = square_values / 2; distance > 0; distance /= 2) square += __shfl_xor_sync(0xffffffffu, square, distance);
  if (!exists) return;
  store_value(next.x + token * next.stride, row, value * weight, next.as);
  if (row % square_values == 0) next.squares[token * (rows / square_values) + row / square_values] = square;
}

}  // namespace millrace
