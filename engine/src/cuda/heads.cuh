// One head of one token, by a warp: its norm, RoPE, the query's scale, and where it goes. Pairs are neighbours of the first half of what is turned, of the
// second half, and of what is not turned.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <type_traits>

#include "reduce.cuh"
#include "vectors.h"

namespace millrace {

constexpr float half_max = 65504;

// A norm over all heads' width has one factor for the token; see whole_factor.
struct HeadNorm {
  const DeviceNorm* norm = nullptr;  // none: values stay as they are
  float factor = 0;
};

// What the matrix left of a head: float32, or each with a tag beside it, for which whoever reads waits.
struct TwoPairs {
  float2 first, second;
};
struct PlainValues {
  const float* from;

  __device__ PlainValues operator+(int64_t count) const { return {from + count}; }
  __device__ float2 pair(int i) const { return *reinterpret_cast<const float2*>(from + i); }
  __device__ TwoPairs pairs(int i, int j) const { return {pair(i), pair(j)}; }
  __device__ float one(int i) const { return from[i]; }
};
struct TaggedValues {
  const uint64_t* from;  // the tag in the upper half
  uint32_t tag;

  __device__ TaggedValues operator+(int64_t count) const { return {from + count, tag}; }
  __device__ float2 pair(int i) const { return pairs(i, i).first; }
  // Asked for together.
  __device__ TwoPairs pairs(int i, int j) const {
    uint64_t a[2], b[2];
    do {
      asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(a[0]), "=l"(a[1]) : "l"(from + i) : "memory");
      asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(b[0]), "=l"(b[1]) : "l"(from + j) : "memory");
    } while (a[0] >> 32 != tag || a[1] >> 32 != tag || b[0] >> 32 != tag || b[1] >> 32 != tag);
    const auto value = [](uint64_t tagged) { return __uint_as_float(static_cast<uint32_t>(tagged)); };
    return {{value(a[0]), value(a[1])}, {value(b[0]), value(b[1])}};
  }
  __device__ float one(int i) const {
    uint64_t value;
    do asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from + i) : "memory");
    while (value >> 32 != tag);
    return __uint_as_float(static_cast<uint32_t>(value));
  }
};

// What the values of head number `head` are multiplied by, beside the norm's weights, and where those are.
struct HeadScale {
  float factor;
  const float* weight;  // [head_dim]; none: no norm

  __device__ float2 apply(float2 pair, int i) const {
    if (weight == nullptr) return pair;
    return {pair.x * factor * weight[i], pair.y * factor * weight[i + 1]};
  }
};
template <typename Values>
__device__ HeadScale scale_of_head(const HeadNorm& given, const Values& values, int head, int head_dim) {
  if (given.norm == nullptr || given.norm->weight == nullptr) return {1, nullptr};
  const DeviceNorm& norm = *given.norm;
  if (norm.n != head_dim) return {given.factor, norm.weight + static_cast<int64_t>(head) * head_dim};
  float squares = 0;
  for (int i = 2 * (static_cast<int>(threadIdx.x) % 32); i < head_dim; i += 64) {
    const float2 pair = values.pair(i);
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
// A query for keys in E4M3, in order or as half_place has it; values that are too large become the largest.
template <bool in_order>
struct ToHalf {
  __nv_bfloat16* out;

  __device__ static int place(int i) { return in_order ? i : half_place(i); }
  __device__ void pair(int i, float first, float second) {
    uint32_t pair;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    *reinterpret_cast<uint32_t*>(out + place(i)) = pair;
  }
  __device__ void one(int i, float value) { reinterpret_cast<__half*>(out)[place(i)] = __float2half_rn(fminf(fmaxf(value, -half_max), half_max)); }
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

// Values [head_dim] go where `to` says. `turns` is of the token's position; null: nothing is turned.
template <typename Values, typename To>
__device__ void finish_head(const HeadNorm& norm, const Values& values, int head, int head_dim, const DeviceRope& rope, const float2* turns, float scale, To& to) {
  const HeadScale own = scale_of_head(norm, values, head, head_dim);
  const int lane = static_cast<int>(threadIdx.x) % 32, pairs = turns == nullptr ? 0 : rope.pairs;
  const auto load = [&](int i) { return own.apply(values.pair(i), i); };
  const auto turn = [](float first, float second, float2 by) { return float2{first * by.x - second * by.y, first * by.y + second * by.x}; };
  if (rope.halves && pairs % 2 == 0) {
    for (int i = 2 * lane; i < pairs; i += 64) {
      const TwoPairs both = values.pairs(i, pairs + i);
      const float2 low = own.apply(both.first, i), high = own.apply(both.second, pairs + i);
      const float2 first = turn(low.x, high.x, turns[i]), second = turn(low.y, high.y, turns[i + 1]);
      to.pair(i, first.x * scale, second.x * scale);
      to.pair(pairs + i, first.y * scale, second.y * scale);
    }
  } else if (rope.halves) {
    for (int i = lane; i < pairs; i += 32) {
      const auto one = [&](int at) { return own.weight == nullptr ? values.one(at) : values.one(at) * own.factor * own.weight[at]; };
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
  for (int i = 2 * pairs + 2 * lane; i < head_dim; i += 128) {
    const bool has_two = i + 64 < head_dim;
    const TwoPairs both = values.pairs(i, has_two ? i + 64 : i);
    const float2 first = own.apply(both.first, i), second = own.apply(both.second, has_two ? i + 64 : i);
    to.pair(i, first.x * scale, first.y * scale);
    if (has_two) to.pair(i + 64, second.x * scale, second.y * scale);
  }
}

// Where a token's key or value lies.
template <KvElement element>
__device__ uint8_t* kv_place(const KvView& kv, const StepToken& token, int kv_head, int head_dim, int64_t offset) {
  uint8_t* page = kv.base + token.slot * kv.slot_bytes + token.position / kv.page_tokens * kv.page_bytes + kv_head * kv.head_bytes;
  return page + offset + token.position % kv.page_tokens * head_dim * bytes_of(element);
}

template <KvElement element, bool in_order = false, typename Values>
__device__ void finish_query(const HeadNorm& norm, const Values& values, int head, const HeadsTask& task, const float2* turns, __nv_bfloat16* out) {
  std::conditional_t<element == KvElement::e4m3, ToHalf<in_order>, ToBfloat16> to{out};
  finish_head(norm, values, head, task.head_dim, task.rope, turns, task.query_scale, to);
}
// A key or a value. `scales` are of E4M3 alone.
template <KvElement element, typename Values>
__device__ void keep_head(const HeadNorm& norm, const Values& values, int kv_head, const HeadsTask& task, const float2* turns, uint8_t* place, const float* scales) {
  if constexpr (element == KvElement::e4m3) {
    ToE4m3 to{place, 1 / scales[kv_head]};
    finish_head(norm, values, kv_head, task.head_dim, task.rope, turns, 1, to);
  } else {
    ToBfloat16 to{reinterpret_cast<__nv_bfloat16*>(place)};
    finish_head(norm, values, kv_head, task.head_dim, task.rope, turns, 1, to);
  }
}

}  // namespace millrace
