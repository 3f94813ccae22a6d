// One row of values as E4M3, by a block: the row's largest magnitude becomes 448, the largest that the type has.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

namespace millrace {

// The largest of every thread's value, for every thread. Blocks are whole warps, at most 32. `partial` is shared memory for 32 floats of nobody else's.
__device__ inline float block_largest(float value, float* partial) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  for (int distance = 16; distance > 0; distance /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  __syncthreads();  // who reads what was there before has read it
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  value = lane < warps ? partial[lane] : 0.0f;
  for (int distance = 16; distance > 0; distance /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

// A row of zeros, or of what is no number, keeps the scale 1.
__device__ inline float e4m3_scale(float largest) {
  constexpr float e4m3_largest = 448;
  return largest > 0 && isfinite(largest) ? largest / e4m3_largest : 1.0f;
}

__device__ inline uint16_t e4m3_pair(float2 pair, float inverse) { return __nv_cvt_float2_to_fp8x2({pair.x * inverse, pair.y * inverse}, __NV_SATFINITE, __NV_E4M3); }

// Eight values that lie in a row.
__device__ inline float largest_of_eight(const uint4& bfloats, float largest) {
  const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&bfloats);
  for (int j = 0; j < 4; j++) {
    const float2 pair = __bfloat1622float2(pairs[j]);
    largest = fmaxf(largest, fmaxf(fabsf(pair.x), fabsf(pair.y)));
  }
  return largest;
}
__device__ inline uint2 e4m3_eight(const uint4& bfloats, float inverse) {
  const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&bfloats);
  uint32_t words[2];
  for (int j = 0; j < 2; j++)
    words[j] = e4m3_pair(__bfloat1622float2(pairs[2 * j]), inverse) | static_cast<uint32_t>(e4m3_pair(__bfloat1622float2(pairs[2 * j + 1]), inverse)) << 16;
  return {words[0], words[1]};
}

}  // namespace millrace
