// What the kernels of sampling share: how a logit is read and ordered, and what the slices of a vocabulary leave for the draw.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels.h"
#include "launch.h"

namespace millrace {

// Sampling takes two kernels. The first (sample_adjust.cu) goes over all logits, a block a slice of one sample's vocabulary; the second
// (sample.cu) makes of what the slices left a token.
constexpr int slice_threads = 256, slice_quads = 4, slice_tokens = slice_threads * slice_quads * 4;
constexpr int sample_vocabulary_max = 3 << 17;  // what the shared memory of the draw's blocks holds
constexpr int slices_max = sample_vocabulary_max / slice_tokens;
constexpr int adjust_flags = bias_flag | penalty_flag | barred_flag | mask_flag;
constexpr unsigned all_lanes = 0xffffffffu;

__host__ __device__ constexpr int slices_of(int vocabulary) { return (vocabulary + slice_tokens - 1) / slice_tokens; }

// sample_adjust.cu.
void adjust(cudaStream_t stream, const StepView& step, const SampleTask& task);

// A logit and its token in one number: the greatest is the likeliest, of equals the one of the lower id. 0 is no token.
using Key = unsigned long long;

__device__ inline Key key_of(float logit, int token) {
  const uint32_t bits = __float_as_uint(logit);
  const uint32_t ordered = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<Key>(ordered) << 32 | ~static_cast<uint32_t>(token);
}
__device__ inline float logit_of(Key key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float((ordered >> 31) != 0 ? ordered & 0x7fffffffu : ~ordered);
}
__device__ inline int token_of(Key key) { return static_cast<int>(~static_cast<uint32_t>(key)); }

// The greatest of a warp's keys, for every lane.
__device__ inline Key warp_greatest(Key key) {
  const auto high = static_cast<uint32_t>(key >> 32);
  const uint32_t highest = __reduce_max_sync(all_lanes, high);
  return static_cast<Key>(highest) << 32 | __reduce_max_sync(all_lanes, high == highest ? static_cast<uint32_t>(key) : 0u);
}

// A logit that is no number counts as impossible, and a zero has one sign.
__device__ inline float possible(float logit) { return isnan(logit) ? -INFINITY : __fadd_rn(logit, 0.0f); }

// Four logits from `token`, a multiple of 4, on; those beyond the vocabulary are impossible. Rows of whole quads are read as such. Only
// what earlier kernels wrote may be read so.
__device__ inline void load_quad(const float* row, int token, int vocabulary, float (&quad)[4]) {
  if (vocabulary % 4 == 0) {
    float4 read = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    if (token < vocabulary) read = __ldg(reinterpret_cast<const float4*>(row + token));
    quad[0] = possible(read.x), quad[1] = possible(read.y), quad[2] = possible(read.z), quad[3] = possible(read.w);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) quad[i] = token + i < vocabulary ? possible(__ldg(row + token + i)) : -INFINITY;
  }
}

__device__ inline bool is_greedy(const StepSample& sample) { return !(sample.temperature > 0) || sample.top_k == 1; }

// What one sample's slices leave for the draw. A sample's place in the scratch memory is the same whatever the step's size, and everything
// is written before it is read: nothing needs clearing.
struct SliceResults {
  Key* best;    // [slices], the likeliest of each as adjusted
  float2* sums; // [slices], where log-probabilities are asked for: the highest logit, and the sum of exp(logit - highest), as they came
  Key* top;     // [slices][logprobs], then too: the likeliest of each as they came, in falling order
};
__host__ __device__ constexpr size_t slice_results_bytes(int vocabulary) {
  return static_cast<size_t>(slices_of(vocabulary)) * (sizeof(Key) + sizeof(float2) + step_logprobs_max * sizeof(Key));
}
__device__ inline SliceResults slice_results(const SampleTask& task, int sample) {
  const int slices = slices_of(task.vocabulary);
  auto* best = reinterpret_cast<Key*>(static_cast<uint8_t*>(task.scratch) + static_cast<size_t>(sample) * slice_results_bytes(task.vocabulary));
  auto* sums = reinterpret_cast<float2*>(best + slices);
  return {best, sums, reinterpret_cast<Key*>(sums + slices)};
}

}  // namespace millrace
