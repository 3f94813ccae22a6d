// Between the matrix of q, k and v and attention: norms of q and k, RoPE, the query's scale, and keys and values into KV memory. A block has
// one token and one KV head with the queries that share it, a warp one head at a time; see heads.cuh.
// Bytes: (heads + 2 kv_heads) * head_dim * (4 read + 2 written) for each token; of keys and values in E4M3, 1 written.
#include "heads.cuh"
#include "launch.h"

namespace millrace {
namespace {

constexpr int head_warps_max = 8;

// The block computes it together. Zero: the norm is over each head, or there is none.
__device__ float whole_factor(const DeviceNorm& norm, const float* values, int head_dim, float* partial) {
  if (norm.weight == nullptr || norm.n == head_dim) return 0;
  float squares = 0;
  for (int i = threadIdx.x; i < norm.n; i += blockDim.x) squares += values[i] * values[i];
  return rsqrtf(block_sum(squares, partial) / static_cast<float>(norm.n) + norm.epsilon);
}

// So many have room in a multiprocessor's registers: while one waits for memory, others go on.
constexpr int heads_blocks_min = 5;
template <KvElement element>
__global__ void __launch_bounds__(32 * head_warps_max, heads_blocks_min) heads_kernel(StepView step, HeadsTask task) {
  __shared__ float partial[32];
  let_next_begin();
  wait_for_previous();
  const int t = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y), head_dim = task.head_dim, group = task.heads / task.kv_heads;
  const StepToken token = step.tokens[t];
  if (t >= step.counts->tokens || token.slot < 0) return;
  const float* q = task.qkv + static_cast<int64_t>(t) * (task.heads + 2 * task.kv_heads) * head_dim;
  const float* k = q + static_cast<int64_t>(task.heads) * head_dim;
  const float* v = k + static_cast<int64_t>(task.kv_heads) * head_dim;
  const HeadNorm q_norm{&task.q_norm, whole_factor(task.q_norm, q, head_dim, partial)}, k_norm{&task.k_norm, whole_factor(task.k_norm, k, head_dim, partial)};
  const float2* turns = task.rope.turns + static_cast<int64_t>(t) * task.rope.pairs;
  const auto values_of = [&](const float* of, int head) { return PlainValues{of + static_cast<int64_t>(head) * head_dim}; };
  const auto place_of = [&](int64_t offset) { return kv_place<element>(task.kv, token, kv_head, head_dim, offset); };

  const int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
  for (int i = warp; i < group + 2; i += warps) {
    if (i < group) {
      const int head = kv_head * group + i;
      finish_query<element>(q_norm, values_of(q, head), head, task, turns, task.q + (static_cast<int64_t>(t) * task.heads + head) * head_dim);
    } else if (i == group) {
      keep_head<element>(k_norm, values_of(k, kv_head), kv_head, task, turns, place_of(task.kv.key_offset), task.kv.key_scales);
    } else {
      keep_head<element>({}, values_of(v, kv_head), kv_head, task, nullptr, place_of(task.kv.value_offset), task.kv.value_scales);
    }
  }
}

}  // namespace

void finish_heads(cudaStream_t stream, const StepView& step, const HeadsTask& task) {
  const int warps = std::min(task.heads / task.kv_heads + 2, head_warps_max);
  const auto kernel = task.kv.element == KvElement::e4m3 ? heads_kernel<KvElement::e4m3> : heads_kernel<KvElement::bfloat16>;
  launch(stream, dim3(static_cast<unsigned>(step.tokens_max), static_cast<unsigned>(task.kv_heads)), 32 * warps, 0, kernel, step, task);
}

}  // namespace millrace
