// The scales of a layer's keys and values in E4M3, from its weights alone: a float needs no scale to be exact, only one with which nothing is too large.
//
// What a norm leaves, before its weights g and biases h, is no longer than the square root of its width n. So a row w of the matrix behind it yields at most
// |w g| sqrt(n) + sum |w h|, and its bias (Cauchy-Schwarz); and a key behind a norm of its own at most the largest of that one's weights times sqrt(n). A RoPE
// turns two values into one another: either may become as long as both, sqrt(2) times the larger. Values as they come are smaller than that by some sqrt(n), which
// leaves them hundreds of times above the smallest that have all bits.
// Grid: a block for the keys and one for the values of each KV head, a warp a row. Bytes: those of the rows, once, at load. Reference: test/cuda/kv_scales.test.cpp.
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "launch.h"
#include "quantize.cuh"
#include "reduce.cuh"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int scale_warps = 32;
constexpr float e4m3_max = 448, sqrt_2 = 1.41421356f;
// Before products, x is rounded to E4M3 at worst, by up to a sixteenth of each value, and four bits to bfloat16.
constexpr float rounding = 1.08f;

__device__ float weight_at(const DeviceMatrix& w, int64_t row, int column) {
  const int64_t at = row * w.columns + column;
  if (w.type == DeviceMatrix::Type::bf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(w.values)[at]);
  if (w.type == DeviceMatrix::Type::fp8) return static_cast<float>(static_cast<const __nv_fp8_e4m3*>(w.values)[at]) * w.scales[row];
  const int group = column / q4_group_columns, place = column % q4_group_columns, word = (place / 8) ^ (2 * (group % 2)), lane = q4_lane(row, group);
  const uint8_t* piece = static_cast<const uint8_t*>(w.values) + q4_piece_at(row, group, q4_pieces(w.columns));
  const uint32_t quants = reinterpret_cast<const uint32_t*>(piece)[lane * (q4_group_columns / 8) + word];
  const float2 scales = __half22float2(reinterpret_cast<const __half2*>(piece + q4_quants_bytes)[lane]);
  return fmaf(static_cast<float>(quants >> (place % 2 * 16 + place % 8 / 2 * 4) & 15), scales.x, scales.y);
}

// The largest that a row of the matrix yields, for every lane of a warp.
__device__ float row_bound(const KvScalesTask& task, int64_t row, int lane) {
  float squares = 0, shift = 0;
  for (int c = lane; c < task.columns; c += 32) {
    const float w = weight_at(task.w, row, c), normed = w * (task.norm.weight == nullptr ? unnormed_rms : task.norm.weight[c]);
    squares += normed * normed;
    if (task.norm.bias != nullptr) shift += fabsf(w * task.norm.bias[c]);
  }
  const float own = task.bias == nullptr ? 0 : fabsf(task.bias[row]);
  return sqrtf(warp_sum(squares) * static_cast<float>(task.columns)) + warp_sum(shift) + own;
}

// The least power of two above x; 1 where that is none.
__device__ float power_above(float x) {
  constexpr int exponent_max = 100;
  if (!(x > 0) || !isfinite(x)) return 1;
  int exponent = 0;
  frexpf(x, &exponent);
  return ldexpf(1, min(max(exponent, -exponent_max), exponent_max));
}

__global__ void __launch_bounds__(32 * scale_warps) kv_scales_kernel(const __grid_constant__ KvScalesTask task) {
  __shared__ float partial[32];
  let_next_begin();
  wait_for_previous();
  const int kv_head = static_cast<int>(blockIdx.x), warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const bool is_value = blockIdx.y == 1;
  float largest = 0;
  if (!is_value && task.k_norm.weight != nullptr) {
    const float* weight = task.k_norm.weight + (task.k_norm.n == task.head_dim ? 0 : kv_head * task.head_dim);
    for (int d = static_cast<int>(threadIdx.x); d < task.head_dim; d += 32 * scale_warps) largest = fmaxf(largest, fabsf(weight[d]));
    largest *= sqrtf(static_cast<float>(task.k_norm.n));
  } else {
    const int64_t first = int64_t{task.heads + (is_value ? task.kv_heads : 0) + kv_head} * task.head_dim;
    for (int d = warp; d < task.head_dim; d += scale_warps) largest = fmaxf(largest, row_bound(task, first + d, lane));
  }
  const float turned = is_value ? 1 : fmaxf(1, sqrt_2 * task.turn_factor), bound = block_largest(largest, partial) * rounding * turned;
  if (threadIdx.x == 0) (is_value ? task.value_scales : task.key_scales)[kv_head] = power_above(bound / e4m3_max);
}

}  // namespace

void scale_kv(cudaStream_t stream, const KvScalesTask& task) {
  launch(stream, dim3(static_cast<unsigned>(task.kv_heads), 2), 32 * scale_warps, 0, kv_scales_kernel, task);
}

}  // namespace millrace
