// Rows of bfloat16 as E4M3 with a scale for each: the row's largest magnitude becomes 448, the largest that the type has. One block a row;
// the second pass finds its values in the cache. Bytes: columns * (2 read + 1 written) for each row.
#include "launch.h"
#include "quantize.cuh"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int quantize_threads = 256;

__global__ void __launch_bounds__(quantize_threads) quantize_kernel(const __nv_bfloat16* x, int columns, uint8_t* quants, float* scales) {
  __shared__ float partial[32];
  let_next_begin();
  wait_for_previous();
  const auto* row = reinterpret_cast<const uint4*>(x + static_cast<int64_t>(blockIdx.x) * columns);  // columns are a multiple of 64
  float largest = 0;
  for (int i = static_cast<int>(threadIdx.x); i < columns / 8; i += quantize_threads) largest = largest_of_eight(row[i], largest);
  const float scale = e4m3_scale(block_largest(largest, partial)), inverse = 1 / scale;
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
  auto* out = reinterpret_cast<uint2*>(quants + static_cast<int64_t>(blockIdx.x) * columns);
  for (int i = static_cast<int>(threadIdx.x); i < columns / 8; i += quantize_threads) out[i] = e4m3_eight(row[i], inverse);
}

}  // namespace

void quantize_rows(cudaStream_t stream, const __nv_bfloat16* x, int rows, int columns, uint8_t* quants, float* scales) {
  launch(stream, rows, quantize_threads, 0, quantize_kernel, x, columns, quants, scales);
}

}  // namespace millrace
