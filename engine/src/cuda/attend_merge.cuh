// Partial results of attention over chunks of a context, and how they become a token's answer.
#pragma once

#include "attend.cuh"
#include "store.cuh"

namespace millrace {

#ifdef __CUDACC__

// The largest score times log2(e), the weights' sum relative to it, and that of the weighted values.
__device__ __forceinline__ float* partial_of(const AttendTask& task, int piece, int head) {
  return task.scratch.partials + (static_cast<int64_t>(piece) * task.shape.heads + head) * (2 + task.shape.head_dim);
}

// Adds up a token's `live` partial results from number `piece` on for one head, by one warp: each lane has every 32nd pair of dimensions.
template <int dims>
__device__ void merge_head(const AttendTask& task, int token, int piece, int live, int head, int lane) {
  constexpr int pairs = (dims + 63) / 64, batch = dims <= 128 ? 16 : dims <= 256 ? 8 : 4;
  const int width = task.shape.head_dim;
  const int64_t stride = static_cast<int64_t>(task.shape.heads) * (2 + width);
  const float* first = partial_of(task, piece, head);
  // Other multiprocessors wrote them: L1 may hold what was there before.
  float most = -INFINITY, total = 0;
  for (int i = lane; i < live; i += 32) most = fmaxf(most, __ldcg(first + i * stride));
  for (int distance = 16; distance > 0; distance /= 2) most = fmaxf(most, __shfl_xor_sync(full_warp, most, distance));
  float2 sum[pairs] = {};
  for (int base = 0; base < live; base += 32) {
    float weight = 0;
    if (base + lane < live) {
      const float2 told = __ldcg(reinterpret_cast<const float2*>(first + (base + lane) * stride));
      weight = power_of_two(told.x - most);
      total += weight * told.y;
    }
    const int count = min(32, live - base);
    for (int begin = 0; begin < count; begin += batch) {
      float2 part[batch][pairs];
#pragma unroll
      for (int i = 0; i < batch; i++)
#pragma unroll
        for (int j = 0; j < pairs; j++) {
          const int dim = 2 * lane + 64 * j;
          part[i][j] = begin + i < count && dim < width ? __ldcg(reinterpret_cast<const float2*>(first + (base + begin + i) * stride + 2 + dim)) : make_float2(0, 0);
        }
#pragma unroll
      for (int i = 0; i < batch; i++) {
        const float factor = __shfl_sync(full_warp, weight, (begin + i) & 31);
#pragma unroll
        for (int j = 0; j < pairs; j++) sum[j].x += factor * part[i][j].x, sum[j].y += factor * part[i][j].y;
      }
    }
  }
  for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(full_warp, total, distance);
  const float factor = answer_factor(most, total, task.shape.sinks, head);
  __nv_bfloat16* answer = task.out + token * task.out_stride;
#pragma unroll
  for (int j = 0; j < pairs; j++) {
    const int dim = 2 * lane + 64 * j;
    if (dim < width) store_pair(answer, head * width + dim, sum[j].x * factor, sum[j].y * factor, task.as);
  }
}

#endif

}  // namespace millrace
