// The function between the halves of a feed-forward layer, where the matrix in front of it did not apply it, and what follows matrices that
// others multiplied: biases and the soft cap of logits. A block has one token and 1,024 of its values.
#include "activate.cuh"
#include "launch.h"
#include "store.cuh"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int gate_threads = 256, gate_values = 1024;

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
    store_value(task.out + t * stride + i, result, task.as);
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

// Eight values a thread, of bfloat16 without a bias: what many tokens' matrices leave.
__global__ void __launch_bounds__(gate_threads) gate_eight_kernel(GateTask task, int stride) {
  let_next_begin();
  wait_for_previous();
  const int i = 8 * (static_cast<int>(blockIdx.x) * gate_threads + static_cast<int>(threadIdx.x));
  if (i >= task.ffn) return;
  const auto* row = static_cast<const __nv_bfloat16*>(task.wide) + static_cast<int64_t>(blockIdx.y) * 2 * task.ffn;
  const uint4 gates = *reinterpret_cast<const uint4*>(row + i), ups = *reinterpret_cast<const uint4*>(row + task.ffn + i);
  const auto *gate_pairs = reinterpret_cast<const __nv_bfloat162*>(&gates), *up_pairs = reinterpret_cast<const __nv_bfloat162*>(&ups);
  uint4 results;
  auto* pairs = reinterpret_cast<uint32_t*>(&results);
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 gate = __bfloat1622float2(gate_pairs[j]), up = __bfloat1622float2(up_pairs[j]);
    pairs[j] = stored_pair(gated(task.activation, gate.x, up.x), gated(task.activation, gate.y, up.y), task.as);
  }
  *reinterpret_cast<uint4*>(task.out + static_cast<int64_t>(blockIdx.y) * stride + i) = results;
}

dim3 grid_of(int n, int tokens) { return dim3(static_cast<unsigned>((n + gate_values - 1) / gate_values), static_cast<unsigned>(tokens)); }

}  // namespace

void gate(cudaStream_t stream, int tokens, const GateTask& task) {
  if (task.is_gated && !task.is_float32 && task.bias == nullptr && task.ffn % 8 == 0) {
    const dim3 grid(static_cast<unsigned>((task.ffn / 8 + gate_threads - 1) / gate_threads), static_cast<unsigned>(tokens));
    return launch(stream, grid, gate_threads, 0, gate_eight_kernel, task, padded_columns(task.ffn));
  }
  launch(stream, grid_of(task.ffn, tokens), gate_threads, 0, gate_kernel, task, padded_columns(task.ffn));
}

void finish_rows(cudaStream_t stream, int tokens, const float* bias, float soft_cap, float* y, int n, int64_t stride) {
  launch(stream, grid_of(n, tokens), gate_threads, 0, finish_rows_kernel, bias, soft_cap, y, n, stride);
}

}  // namespace millrace
