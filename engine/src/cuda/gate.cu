// The function between the halves of a feed-forward layer, where the matrix in front of it did not apply it, and what follows matrices that
// others multiplied: biases and the soft cap of logits. A block has one token and 1,024 of its values.
#include "activate.cuh"
#include "launch.h"
#include "quantize.cuh"
#include "store.cuh"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int gate_threads = 256, gate_values = 1024, gate_row_threads = 512;
constexpr int gate_row_values_max = 98'304;  // that a block's shared memory holds in bfloat16

__device__ float with_bias(const GateTask& task, int64_t row, int i, int width) {
  const int64_t at = row * width + i;
  const float value = task.is_float32 ? static_cast<const float*>(task.wide)[at] : __bfloat162float(static_cast<const __nv_bfloat16*>(task.wide)[at]);
  return value + (task.bias == nullptr ? 0.0f : task.bias[i]);
}

__global__ void __launch_bounds__(gate_threads) gate_kernel(GateTask task, int stride) {
  let_next_begin();
  wait_for_previous();
  const int64_t t = blockIdx.y;
  const int width = task.is_gated ? 2 * task.ffn : task.ffn, end = min(task.ffn, (static_cast<int>(blockIdx.x) + 1) * gate_values);
  for (int i = static_cast<int>(blockIdx.x) * gate_values + static_cast<int>(threadIdx.x); i < end; i += gate_threads) {
    const float value = with_bias(task, t, i, width);
    const float result = task.is_gated ? gated(task.activation, value, with_bias(task, t, task.ffn + i, width)) : activate(task.activation, value);
    store_value(task.out + t * stride, i, result, task.as);
  }
}

__global__ void __launch_bounds__(gate_threads) finish_rows_kernel(const float* bias, float soft_cap, float* y, int n, int64_t stride) {
  let_next_begin();
  wait_for_previous();
  const int end = min(n, (static_cast<int>(blockIdx.x) + 1) * gate_values);
  for (int i = static_cast<int>(blockIdx.x) * gate_values + static_cast<int>(threadIdx.x); i < end; i += gate_threads) {
    float value = y[blockIdx.y * stride + i] + (bias == nullptr ? 0.0f : bias[i]);
    if (soft_cap != 0) value = soft_cap * tanhf(value / soft_cap);
    y[blockIdx.y * stride + i] = value;
  }
}

// Eight values of a row of bfloat16 without a bias: what many tokens' matrices leave.
__device__ __forceinline__ uint4 gated_eight(const GateTask& task, const __nv_bfloat16* gate_values_at) {
  const uint4 gates = *reinterpret_cast<const uint4*>(gate_values_at), ups = *reinterpret_cast<const uint4*>(gate_values_at + task.ffn);
  const auto *gate_pairs = reinterpret_cast<const __nv_bfloat162*>(&gates), *up_pairs = reinterpret_cast<const __nv_bfloat162*>(&ups);
  uint4 results;
  auto* pairs = reinterpret_cast<uint32_t*>(&results);
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 gate = __bfloat1622float2(gate_pairs[j]), up = __bfloat1622float2(up_pairs[j]);
    pairs[j] = stored_pair(gated(task.activation, gate.x, up.x), gated(task.activation, gate.y, up.y), task.as);
  }
  return results;
}

// Eight a thread.
__global__ void __launch_bounds__(gate_threads) gate_eight_kernel(GateTask task, int stride) {
  let_next_begin();
  wait_for_previous();
  const int i = 8 * (static_cast<int>(blockIdx.x) * gate_threads + static_cast<int>(threadIdx.x));
  if (i >= task.ffn) return;
  const auto* row = static_cast<const __nv_bfloat16*>(task.wide) + static_cast<int64_t>(blockIdx.y) * 2 * task.ffn;
  *reinterpret_cast<uint4*>(task.out + static_cast<int64_t>(blockIdx.y) * stride + i) = gated_eight(task, row + i);
}

// The same for E4M3, which a block must see a whole row for.
__global__ void __launch_bounds__(gate_row_threads) gate_quantized_kernel(GateTask task, int stride) {
  extern __shared__ uint4 gated_row[];
  __shared__ float partial[32];
  let_next_begin();
  wait_for_previous();
  const int64_t t = blockIdx.x;
  const auto* row = static_cast<const __nv_bfloat16*>(task.wide) + t * 2 * task.ffn;
  float largest = 0;
  for (int i = static_cast<int>(threadIdx.x); i < task.ffn / 8; i += gate_row_threads) {
    gated_row[i] = gated_eight(task, row + 8 * i);
    largest = largest_of_eight(gated_row[i], largest);
  }
  const float scale = e4m3_scale(block_largest(largest, partial)), inverse = 1 / scale;
  if (threadIdx.x == 0) task.quantized.scales[t] = scale;
  auto* out = reinterpret_cast<uint2*>(task.quantized.values + t * stride);
  for (int i = static_cast<int>(threadIdx.x); i < stride / 8; i += gate_row_threads) out[i] = i < task.ffn / 8 ? e4m3_eight(gated_row[i], inverse) : uint2{0, 0};
}

dim3 grid_of(int n, int tokens) { return dim3(static_cast<unsigned>((n + gate_values - 1) / gate_values), static_cast<unsigned>(tokens)); }

}  // namespace

void gate(cudaStream_t stream, int tokens, const GateTask& task) {
  const int stride = padded_columns(task.ffn);
  const bool is_plain = task.is_gated && !task.is_float32 && task.bias == nullptr && task.ffn % 8 == 0;
  if (task.quantized.values != nullptr && is_plain && task.ffn <= gate_row_values_max) {
    static const bool is_allowed = (allow_shared(gate_quantized_kernel, gate_row_values_max * sizeof(uint16_t)), true);
    static_cast<void>(is_allowed);
    return launch(stream, tokens, gate_row_threads, static_cast<size_t>(task.ffn) * sizeof(uint16_t), gate_quantized_kernel, task, stride);
  }
  if (task.quantized.values != nullptr) {
    GateTask rounded = task;
    rounded.quantized = {};
    gate(stream, tokens, rounded);
    return quantize_rows(stream, task.out, tokens, stride, task.quantized.values, task.quantized.scales);
  }
  if (is_plain && task.as == Activations::bfloat16) {
    const dim3 grid(static_cast<unsigned>((task.ffn / 8 + gate_threads - 1) / gate_threads), static_cast<unsigned>(tokens));
    return launch(stream, grid, gate_threads, 0, gate_eight_kernel, task, stride);
  }
  launch(stream, grid_of(task.ffn, tokens), gate_threads, 0, gate_kernel, task, stride);
}

void finish_rows(cudaStream_t stream, int tokens, const float* bias, float soft_cap, float* y, int n, int64_t stride) {
  launch(stream, grid_of(n, tokens), gate_threads, 0, finish_rows_kernel, bias, soft_cap, y, n, stride);
}

}  // namespace millrace
