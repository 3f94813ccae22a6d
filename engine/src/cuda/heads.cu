// Between the matrix of q, k and v and attention: norms of q and k, RoPE, the query's scale, and keys and values into KV memory. A block has
// one token and one KV head with the queries that share it, a warp one head at a time: pairs of
// neighbours of the first half of what is turned, of the second half, and of what is not turned.
// Bytes: (heads + 2 kv_heads) * head_dim * (4 read + 2 written) for each token.
#include "launch.h"
#include "reduce.cuh"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int head_warps_max = 8;

// A norm over all heads' width has one factor for the token; see whole_factor.
struct HeadNorm {
  const DeviceNorm* norm = nullptr;  // none: values stay as they are
  float factor = 0;
};

// The block computes it together. Zero: the norm is over each head, or there is none.
__device__ float whole_factor(const DeviceNorm& norm, const float* values, int head_dim, float* partial) {
  if (norm.weight == nullptr || norm.n == head_dim) return 0;
  float squares = 0;
  for (int i = threadIdx.x; i < norm.n; i += blockDim.x) squares += values[i] * values[i];
  return rsqrtf(block_sum(squares, partial) / static_cast<float>(norm.n) + norm.epsilon);
}

// What the values of head number `head` are multiplied by, beside the norm's weights, and where those are.
struct HeadScale {
  float factor;
  const float* weight;  // [head_dim]; none: no norm

  __device__ float2 apply(float2 pair, int i) const {
    if (weight == nullptr) return pair;
    return {pair.x * factor * weight[i], pair.y * factor * weight[i + 1]};
  }
};
__device__ HeadScale scale_of_head(const HeadNorm& given, const float* values, int head, int head_dim) {
  if (given.norm == nullptr || given.norm->weight == nullptr) return {1, nullptr};
  const DeviceNorm& norm = *given.norm;
  if (norm.n != head_dim) return {given.factor, norm.weight + static_cast<int64_t>(head) * head_dim};
  float squares = 0;
  for (int i = 2 * (static_cast<int>(threadIdx.x) % 32); i < head_dim; i += 64) {
    const float2 pair = *reinterpret_cast<const float2*>(values + i);
    squares += pair.x * pair.x + pair.y * pair.y;
  }
  return {rsqrtf(warp_sum(squares) / static_cast<float>(head_dim) + norm.epsilon), norm.weight};
}

__device__ void store_pair(__nv_bfloat16* out, float2 pair, float scale) {
  *reinterpret_cast<__nv_bfloat162*>(out) = __floats2bfloat162_rn(pair.x * scale, pair.y * scale);
}

// values [head_dim] become out [head_dim], which may lie in shared memory. `turns` is of the token's position; null: nothing is turned.
__device__ void finish_head(const HeadNorm& norm, const float* values, int head, int head_dim, const DeviceRope& rope, const float2* turns, float scale,
                                   __nv_bfloat16* out) {
  const HeadScale own = scale_of_head(norm, values, head, head_dim);
  const int lane = static_cast<int>(threadIdx.x) % 32, pairs = turns == nullptr ? 0 : rope.pairs;
  const auto load = [&](int i) { return own.apply(*reinterpret_cast<const float2*>(values + i), i); };
  const auto turn = [](float first, float second, float2 by) { return float2{first * by.x - second * by.y, first * by.y + second * by.x}; };
  if (rope.halves && pairs % 2 == 0) {
    for (int i = 2 * lane; i < pairs; i += 64) {
      const float2 low = load(i), high = load(pairs + i);
      const float2 first = turn(low.x, high.x, turns[i]), second = turn(low.y, high.y, turns[i + 1]);
      store_pair(out + i, {first.x, second.x}, scale);
      store_pair(out + pairs + i, {first.y, second.y}, scale);
    }
  } else if (rope.halves) {
    for (int i = lane; i < pairs; i += 32) {
      const auto one = [&](int at) { return own.weight == nullptr ? values[at] : values[at] * own.factor * own.weight[at]; };
      const float2 turned = turn(one(i), one(pairs + i), turns[i]);
      out[i] = __float2bfloat16(turned.x * scale);
      out[pairs + i] = __float2bfloat16(turned.y * scale);
    }
  } else {
    for (int i = lane; i < pairs; i += 32) {
      const float2 pair = load(2 * i);
      store_pair(out + 2 * i, turn(pair.x, pair.y, turns[i]), scale);
    }
  }
  for (int i = 2 * pairs + 2 * lane; i < head_dim; i += 64) store_pair(out + i, load(i), scale);
}

// Where a token's key or value of a KV head lies.
__device__ __nv_bfloat16* kv_place(const KvView& kv, const StepToken& token, int kv_head, int head_dim, int64_t offset) {
  uint8_t* page = kv.base + token.slot * kv.slot_bytes + token.position / kv.page_tokens * kv.page_bytes + kv_head * kv.head_bytes;
  return reinterpret_cast<__nv_bfloat16*>(page + offset) + static_cast<int64_t>(token.position % kv.page_tokens) * head_dim;
}

__global__ void heads_kernel(StepView step, HeadsTask task) {
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
  const auto values_of = [&](const float* of, int head) { return of + static_cast<int64_t>(head) * head_dim; };

  const int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
  for (int i = warp; i < group + 2; i += warps) {
    if (i < group) {
      const int head = kv_head * group + i;
      finish_head(q_norm, values_of(q, head), head, head_dim, task.rope, turns, task.query_scale, task.q + (static_cast<int64_t>(t) * task.heads + head) * head_dim);
    } else if (i == group) {
      finish_head(k_norm, values_of(k, kv_head), kv_head, head_dim, task.rope, turns, 1, kv_place(task.kv, token, kv_head, head_dim, task.kv.key_offset));
    } else {
      finish_head({}, values_of(v, kv_head), kv_head, head_dim, task.rope, nullptr, 1, kv_place(task.kv, token, kv_head, head_dim, task.kv.value_offset));
    }
  }
}

}  // namespace

void finish_heads(cudaStream_t stream, const StepView& step, const HeadsTask& task) {
  const int warps = std::min(task.heads / task.kv_heads + 2, head_warps_max);
  launch(stream, dim3(static_cast<unsigned>(step.tokens_max), static_cast<unsigned>(task.kv_heads)), 32 * warps, 0, heads_kernel, step, task);
}

}  // namespace millrace
