// Rows of bfloat16 as E4M3 with a scale for each: the row's largest magnitude becomes 448, the largest that the type has. One block a row;
// the second pass finds its values in the cache. Bytes: columns * (2 read + 1 written) for each row.
#include <cuda_fp8.h>

#include "launch.h"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int quantize_threads = 256;
constexpr float fp8_largest = 448;

__device__ float block_largest(float value, float* partial) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int distance = 16; distance > 0; distance /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  value = lane < quantize_threads / 32 ? partial[lane] : 0.0f;
  for (int distance = 16; distance > 0; distance /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  return value;
}

__global__ void __launch_bounds__(quantize_threads) quantize_kernel(const __nv_bfloat16* x, int columns, uint8_t* quants, float* scales) {
  __shared__ float partial[32];
  let_next_begin();
  wait_for_previous();
  const auto* row = reinterpret_cast<const uint4*>(x + static_cast<int64_t>(blockIdx.x) * columns);  // columns are a multiple of 64
  float largest = 0;
  for (int i = static_cast<int>(threadIdx.x); i < columns / 8; i += quantize_threads) {
    const uint4 loaded = row[i];
    const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&loaded);
    for (int j = 0; j < 4; j++) {
      const float2 pair = __bfloat1622float2(pairs[j]);
      largest = fmaxf(largest, fmaxf(fabsf(pair.x), fabsf(pair.y)));
    }
  }
  largest = block_largest(largest, partial);
  // A row of zeros, or of what is no number, keeps the scale 1.
  const float scale = largest > 0 && isfinite(largest) ? largest / fp8_largest : 1.0f, inverse = 1 / scale;
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
  auto* out = reinterpret_cast<uint2*>(quants + static_cast<int64_t>(blockIdx.x) * columns);
  for (int i = static_cast<int>(threadIdx.x); i < columns / 8; i += quantize_threads) {
    const uint4 loaded = row[i];
    const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&loaded);
    uint32_t words[2];
    for (int j = 0; j < 2; j++) {
      const float2 low = __bfloat1622float2(pairs[2 * j]), high = __bfloat1622float2(pairs[2 * j + 1]);
      const uint32_t first = __nv_cvt_float2_to_fp8x2({low.x * inverse, low.y * inverse}, __NV_SATFINITE, __NV_E4M3);
      const uint32_t second = __nv_cvt_float2_to_fp8x2({high.x * inverse, high.y * inverse}, __NV_SATFINITE, __NV_E4M3);
      words[j] = first | second << 16;
    }
    out[i] = {words[0], words[1]};
  }
}

}  // namespace

void quantize_rows(cudaStream_t stream, const __nv_bfloat16* x, int rows, int columns, uint8_t* quants, float* scales) {
  launch(stream, rows, quantize_threads, 0, quantize_kernel, x, columns, quants, scales);
}

}  // namespace millrace
