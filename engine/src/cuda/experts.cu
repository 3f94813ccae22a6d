// Feed-forward layers of routed experts: which of them each token goes to, their matrices, and the sum of what they yield. An entry is one
// token at one of its experts; entries are ordered by expert, then token, so that an expert's weights serve its tokens together, and each
// token adds its experts' results in the order of its own scores, so that its sum does not know who else is in the step.
#include "activate.cuh"
#include "launch.h"
#include "reduce.cuh"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int route_threads = 128, order_threads = 1024, matrix_warps = 8, entries_a_pass = 8;

// The `used` experts of the highest scores, the first of equals, and their shares of the softmax. One warp a token.
__global__ void __launch_bounds__(route_threads) route_kernel(StepView step, ExpertsTask task) {
  let_next_begin();
  wait_for_previous();
  const int t = static_cast<int>(blockIdx.x) * (route_threads / 32) + static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (t >= step.counts->tokens || step.tokens[t].slot < 0) return;
  const float* scores = task.scores + static_cast<int64_t>(t) * task.experts;
  int32_t* chosen = task.chosen + static_cast<int64_t>(t) * task.used;
  float* weights = task.weights + static_cast<int64_t>(t) * task.used;
  float last = INFINITY, largest = 0, total = 0;
  int last_expert = -1;
  for (int i = 0; i < task.used; i++) {
    float best = -INFINITY;
    int best_expert = task.experts;
    for (int e = lane; e < task.experts; e += 32) {
      const bool is_left = scores[e] < last || (scores[e] == last && e > last_expert);
      if (is_left && (best_expert == task.experts || scores[e] > best)) best = scores[e], best_expert = e;
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, best, distance);
      const int expert = __shfl_xor_sync(0xffffffffu, best_expert, distance);
      if (expert < task.experts && (best_expert == task.experts || other > best || (other == best && expert < best_expert))) best = other, best_expert = expert;
    }
    // Scores that are no numbers leave nothing to choose: then the experts come in their order.
    if (best_expert == task.experts) best = last, best_expert = min(last_expert + 1, task.experts - 1);
    last = best;
    last_expert = best_expert;
    if (i == 0) largest = best;
    const float weight = expf(best - largest);
    if (task.is_normalized) total += weight;
    if (lane == 0) chosen[i] = best_expert, weights[i] = weight;
  }
  if (!task.is_normalized) {
    for (int e = lane; e < task.experts; e += 32) total += expf(scores[e] - largest);
    total = warp_sum(total);
  }
  if (lane == 0)
    for (int i = 0; i < task.used; i++) weights[i] /= total;
}

// Numbers the entries by expert, then token. One block; experts are few thousands of entries' worth of work at most.
__global__ void __launch_bounds__(order_threads) order_kernel(StepView step, ExpertsTask task) {
  extern __shared__ int32_t next[];  // [experts]
  let_next_begin();
  wait_for_previous();
  const int entries = step.counts->tokens * task.used;
  // Each thread has experts of its own, and goes through all entries for each: no order depends on who came first.
  for (int e = static_cast<int>(threadIdx.x); e < task.experts; e += order_threads) {
    int count = 0;
    for (int i = 0; i < entries; i++) count += task.chosen[i] == e && step.tokens[i / task.used].slot >= 0 ? 1 : 0;
    next[e] = count;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int e = 0; e < task.experts; e++) {
      const int count = next[e];
      task.first[e] = next[e] = sum;
      sum += count;
    }
    task.first[task.experts] = sum;
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < task.experts; e += order_threads)
    for (int i = 0; i < entries; i++)
      if (task.chosen[i] == e && step.tokens[i / task.used].slot >= 0) {
        task.entry_tokens[next[e]] = i / task.used;
        task.entries[i] = next[e]++;
      }
}

// y[entry][row] = w[expert][row] . x[row of the entry] + bias. A warp has one row of one expert, and eight entries at a time.
__global__ void __launch_bounds__(32 * matrix_warps) expert_matmul_kernel(ExpertsTask task, DeviceMatrix w, const float* bias, const __nv_bfloat16* x,
                                                                         bool is_by_token, float* y) {
  let_next_begin();
  wait_for_previous();
  const int e = static_cast<int>(blockIdx.y), row = static_cast<int>(blockIdx.x) * matrix_warps + static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, first = task.first[e], end = task.first[e + 1], rows = w.rows / task.experts;
  if (row >= rows) return;
  const __nv_bfloat16* weights = static_cast<const __nv_bfloat16*>(w.values) + (static_cast<int64_t>(e) * rows + row) * w.columns;
  for (int begin = first; begin < end; begin += entries_a_pass) {
    const __nv_bfloat16* input[entries_a_pass];
    float sums[entries_a_pass] = {};
#pragma unroll
    for (int i = 0; i < entries_a_pass; i++) {
      const int entry = min(begin + i, end - 1);
      input[i] = x + static_cast<int64_t>(is_by_token ? task.entry_tokens[entry] : entry) * w.columns;
    }
    for (int c = 2 * lane; c < w.columns; c += 64) {
      const float2 weight = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(weights + c));
#pragma unroll
      for (int i = 0; i < entries_a_pass; i++) {
        const float2 value = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(input[i] + c));
        sums[i] += weight.x * value.x + weight.y * value.y;
      }
    }
#pragma unroll
    for (int i = 0; i < entries_a_pass; i++) {
      const float sum = warp_sum(sums[i]) + (bias == nullptr ? 0.0f : bias[e * rows + row]);
      if (lane == 0 && begin + i < end) y[static_cast<int64_t>(begin + i) * rows + row] = sum;
    }
  }
}

__global__ void __launch_bounds__(256) expert_gate_kernel(ExpertsTask task, int stride) {
  let_next_begin();
  wait_for_previous();
  const int64_t entry = blockIdx.x;
  if (entry >= task.first[task.experts]) return;
  const float* values = task.wide_values + entry * (task.is_gated ? 2 : 1) * task.ffn;
  for (int i = static_cast<int>(threadIdx.x); i < task.ffn; i += 256) {
    const float result = task.is_gated ? gated(task.activation, values[i], values[task.ffn + i]) : activate(task.activation, values[i]);
    task.gated[entry * stride + i] = __float2bfloat16(result);
  }
}

// x += the sum over a token's experts.
__global__ void __launch_bounds__(256) combine_kernel(StepView step, ExpertsTask task, float* x) {
  let_next_begin();
  wait_for_previous();
  const int64_t t = blockIdx.x;
  if (t >= step.counts->tokens || step.tokens[t].slot < 0) return;
  for (int i = static_cast<int>(threadIdx.x); i < task.hidden; i += 256) {
    float sum = 0;
    for (int64_t j = t * task.used; j < (t + 1) * task.used; j++) sum += task.weights[j] * task.added[static_cast<int64_t>(task.entries[j]) * task.hidden + i];
    x[t * task.hidden + i] += sum;
  }
}

void expert_matmul(cudaStream_t stream, const ExpertsTask& task, const DeviceMatrix& w, const float* bias, const __nv_bfloat16* x, bool is_by_token, float* y) {
  const int rows = w.rows / task.experts;
  const dim3 grid(static_cast<unsigned>((rows + matrix_warps - 1) / matrix_warps), static_cast<unsigned>(task.experts));
  launch(stream, grid, 32 * matrix_warps, 0, expert_matmul_kernel, task, w, bias, x, is_by_token, y);
}

}  // namespace

void run_experts(cudaStream_t stream, const StepView& step, const ExpertsTask& task, float* x) {
  const int tokens = step.tokens_max, warps = route_threads / 32;
  launch(stream, (tokens + warps - 1) / warps, route_threads, 0, route_kernel, step, task);
  launch(stream, 1, order_threads, static_cast<size_t>(task.experts) * sizeof(int32_t), order_kernel, step, task);
  expert_matmul(stream, task, task.wide, task.wide_bias, task.input, true, task.wide_values);
  launch(stream, tokens * task.used, 256, 0, expert_gate_kernel, task, padded_columns(task.ffn));
  expert_matmul(stream, task, task.down, task.down_bias, task.gated, false, task.added);
  launch(stream, tokens, 256, 0, combine_kernel, step, task, x);
}

}  // namespace millrace
