// Between the matrix of q, k and v and attention: norms of q and k, RoPE, the query's scale, and keys and values into KV memory. A block has
// one token and one KV head with the queries that share it; a warp has one head at a time, in shared memory, since RoPE pairs values that
// are far apart. Bytes: (heads + 2 kv_heads) * head_dim * (4 read + 2 written) for each token.
#include "launch.h"
#include "reduce.cuh"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int head_warps_max = 8;

// A norm over all heads' width has one factor for the token. Zero: the norm is over each head, or there is none.
__device__ float whole_factor(const DeviceNorm& norm, const float* values, int head_dim, float* partial) {
  if (norm.weight == nullptr || norm.n == head_dim) return 0;
  float squares = 0;
  for (int i = threadIdx.x; i < norm.n; i += blockDim.x) squares += values[i] * values[i];
  return rsqrtf(block_sum(squares, partial) / static_cast<float>(norm.n) + norm.epsilon);
}

// A head's values, normed, into the warp's room.
__device__ void load_head(const DeviceNorm* norm, float factor, const float* values, int head, int head_dim, float* room) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  values += static_cast<int64_t>(head) * head_dim;
  if (norm == nullptr || norm->weight == nullptr) {
    for (int i = lane; i < head_dim; i += 32) room[i] = values[i];
    return;
  }
  const bool is_whole = norm->n != head_dim;
  if (!is_whole) {
    float squares = 0;
    for (int i = lane; i < head_dim; i += 32) squares += values[i] * values[i];
    factor = rsqrtf(warp_sum(squares) / static_cast<float>(head_dim) + norm->epsilon);
  }
  const float* weight = norm->weight + (is_whole ? static_cast<int64_t>(head) * head_dim : 0);
  for (int i = lane; i < head_dim; i += 32) room[i] = values[i] * factor * weight[i];
}

__device__ void turn_head(const DeviceRope& rope, int token, float* room) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float2* turns = rope.turns + static_cast<int64_t>(token) * rope.pairs;
  __syncwarp();
  for (int i = lane; i < rope.pairs; i += 32) {
    const int a = rope.halves ? i : 2 * i, b = rope.halves ? rope.pairs + i : 2 * i + 1;
    const float first = room[a], second = room[b];
    room[a] = first * turns[i].x - second * turns[i].y;
    room[b] = first * turns[i].y + second * turns[i].x;
  }
}

__device__ void store_head(const float* room, float scale, int head_dim, __nv_bfloat16* out) {
  __syncwarp();
  for (int i = 2 * (static_cast<int>(threadIdx.x) % 32); i < head_dim; i += 64)
    *reinterpret_cast<__nv_bfloat162*>(out + i) = __floats2bfloat162_rn(room[i] * scale, room[i + 1] * scale);
  __syncwarp();
}

__global__ void heads_kernel(StepView step, HeadsTask task) {
  extern __shared__ float rooms[];  // [warps][head_dim]
  __shared__ float partial[32];
  let_next_begin();
  wait_for_previous();
  const int t = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y), head_dim = task.head_dim, group = task.heads / task.kv_heads;
  const StepToken token = step.tokens[t];
  if (t >= step.counts->tokens || token.slot < 0) return;
  const float* q = task.qkv + static_cast<int64_t>(t) * (task.heads + 2 * task.kv_heads) * head_dim;
  const float* k = q + static_cast<int64_t>(task.heads) * head_dim;
  const float* v = k + static_cast<int64_t>(task.kv_heads) * head_dim;
  const float q_factor = whole_factor(task.q_norm, q, head_dim, partial), k_factor = whole_factor(task.k_norm, k, head_dim, partial);

  const int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
  float* room = rooms + static_cast<int64_t>(warp) * head_dim;
  uint8_t* page = task.kv.base + token.slot * task.kv.slot_bytes + token.position / task.kv.page_tokens * task.kv.page_bytes +
                  kv_head * task.kv.head_bytes + static_cast<int64_t>(token.position % task.kv.page_tokens) * head_dim * 2;
  for (int i = warp; i < group + 2; i += warps) {
    if (i < group) {
      const int head = kv_head * group + i;
      load_head(&task.q_norm, q_factor, q, head, head_dim, room);
      turn_head(task.rope, t, room);
      store_head(room, task.query_scale, head_dim, task.q + (static_cast<int64_t>(t) * task.heads + head) * head_dim);
    } else if (i == group) {
      load_head(&task.k_norm, k_factor, k, kv_head, head_dim, room);
      turn_head(task.rope, t, room);
      store_head(room, 1, head_dim, reinterpret_cast<__nv_bfloat16*>(page + task.kv.key_offset));
    } else {
      load_head(nullptr, 0, v, kv_head, head_dim, room);
      store_head(room, 1, head_dim, reinterpret_cast<__nv_bfloat16*>(page + task.kv.value_offset));
    }
  }
}

}  // namespace

void finish_heads(cudaStream_t stream, const StepView& step, const HeadsTask& task) {
  const int warps = std::min(task.heads / task.kv_heads + 2, head_warps_max);
  const size_t room_bytes = static_cast<size_t>(warps) * static_cast<size_t>(task.head_dim) * sizeof(float);
  launch(stream, dim3(static_cast<unsigned>(step.tokens_max), static_cast<unsigned>(task.kv_heads)), 32 * warps, room_bytes, heads_kernel, step, task);
}

}  // namespace millrace
