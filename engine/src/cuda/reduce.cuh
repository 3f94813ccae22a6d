// Sums over a block in one fixed order.
#pragma once

namespace millrace {

__device__ inline float warp_sum(float value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// The sum of every thread's value, for every thread. Blocks are whole warps, at most 32. `partial` is shared memory for 32 floats of nobody else's.
__device__ inline float block_sum(float value, float* partial) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, warps = static_cast<int>(blockDim.x) / 32;
  value = warp_sum(value);
  __syncthreads();  // who reads the sum before this one has read it
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? partial[lane] : 0.0f);
}

}  // namespace millrace
