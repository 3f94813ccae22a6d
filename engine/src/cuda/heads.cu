// Between the matrix of q, k and v and attention: norms of q and k, RoPE, the query's scale, and keys and values into KV memory. A block has
// one token and one KV head with the queries that share it, a warp one head at a time: pairs of
// neighbours of the first half of what is turned, of the second half, and of what is not turned.
// Bytes: (heads + 2 kv_heads) * head_dim * (4 read + 2 written) for each token; of keys and values in E4M3, 1 written.
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <type_traits>

#include "launch.h"
#include "reduce.cuh"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int head_warps_max = 8;
constexpr float half_max = 65504;

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

// Where a finished head goes: as pairs from an even dimension on, or single values.
struct ToBfloat16 {
  __nv_bfloat16* out;

  __device__ void pair(int i, float first, float second) { *reinterpret_cast<__nv_bfloat162*>(out + i) = __floats2bfloat162_rn(first, second); }
  __device__ void one(int i, float value) { out[i] = __float2bfloat16(value); }
};
// A query for keys in E4M3; values that are too large become the largest.
struct ToHalf {
  __nv_bfloat16* out;

  __device__ void pair(int i, float first, float second) {
    uint32_t pair;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    *reinterpret_cast<uint32_t*>(out + half_place(i)) = pair;
  }
  __device__ void one(int i, float value) { reinterpret_cast<__half*>(out)[half_place(i)] = __float2half_rn(fminf(fmaxf(value, -half_max), half_max)); }
};
// A key or value in E4M3, likewise.
struct ToE4m3 {
  uint8_t* out;
  float inverse;  // of the head's scale

  __device__ void pair(int i, float first, float second) {
    *reinterpret_cast<uint16_t*>(out + i) = __nv_cvt_float2_to_fp8x2({first * inverse, second * inverse}, __NV_SATFINITE, __NV_E4M3);
  }
  __device__ void one(int i, float value) { out[i] = __nv_cvt_float_to_fp8(value * inverse, __NV_SATFINITE, __NV_E4M3); }
};

// values [head_dim] go where `to` says. `turns` is of the token's position; null: nothing is turned.
template <typename To>
__device__ void finish_head(const HeadNorm& norm, const float* values, int head, int head_dim, const DeviceRope& rope, const float2* turns, float scale, To& to) {
  const HeadScale own = scale_of_head(norm, values, head, head_dim);
  const int lane = static_cast<int>(threadIdx.x) % 32, pairs = turns == nullptr ? 0 : rope.pairs;
  const auto load = [&](int i) { return own.apply(*reinterpret_cast<const float2*>(values + i), i); };
  const auto turn = [](float first, float second, float2 by) { return float2{first * by.x - second * by.y, first * by.y + second * by.x}; };
  if (rope.halves && pairs % 2 == 0) {
    for (int i = 2 * lane; i < pairs; i += 64) {
      const float2 low = load(i), high = load(pairs + i);
      const float2 first = turn(low.x, high.x, turns[i]), second = turn(low.y, high.y, turns[i + 1]);
      to.pair(i, first.x * scale, second.x * scale);
      to.pair(pairs + i, first.y * scale, second.y * scale);
    }
  } else if (rope.halves) {
    for (int i = lane; i < pairs; i += 32) {
      const auto one = [&](int at) { return own.weight == nullptr ? values[at] : values[at] * own.factor * own.weight[at]; };
      const float2 turned = turn(one(i), one(pairs + i), turns[i]);
      to.one(i, turned.x * scale);
      to.one(pairs + i, turned.y * scale);
    }
  } else {
    for (int i = lane; i < pairs; i += 32) {
      const float2 pair = load(2 * i), turned = turn(pair.x, pair.y, turns[i]);
      to.pair(2 * i, turned.x * scale, turned.y * scale);
    }
  }
  for (int i = 2 * pairs + 2 * lane; i < head_dim; i += 64) {
    const float2 pair = load(i);
    to.pair(i, pair.x * scale, pair.y * scale);
  }
}

// Where a token's key or value lies.
template <KvElement element>
__device__ uint8_t* kv_place(const KvView& kv, const StepToken& token, int kv_head, int head_dim, int64_t offset) {
  uint8_t* page = kv.base + token.slot * kv.slot_bytes + token.position / kv.page_tokens * kv.page_bytes + kv_head * kv.head_bytes;
  return page + offset + token.position % kv.page_tokens * head_dim * bytes_of(element);
}

template <KvElement element>
__device__ void finish_query(const HeadNorm& norm, const float* values, int head, const HeadsTask& task, const float2* turns, __nv_bfloat16* out) {
  std::conditional_t<element == KvElement::e4m3, ToHalf, ToBfloat16> to{out};
  finish_head(norm, values, head, task.head_dim, task.rope, turns, task.query_scale, to);
}
// A key or a value. `scales` are of E4M3 alone.
template <KvElement element>
__device__ void keep_head(const HeadNorm& norm, const float* values, int kv_head, const HeadsTask& task, const float2* turns, uint8_t* place, const float* scales) {
  if constexpr (element == KvElement::e4m3) {
    ToE4m3 to{place, 1 / scales[kv_head]};
    finish_head(norm, values, kv_head, task.head_dim, task.rope, turns, 1, to);
  } else {
    ToBfloat16 to{reinterpret_cast<__nv_bfloat16*>(place)};
    finish_head(norm, values, kv_head, task.head_dim, task.rope, turns, 1, to);
  }
}

template <KvElement element>
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
