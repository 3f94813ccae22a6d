// Log-probabilities of the logits as they came: log-softmax of the sampled token and of the likeliest ones. Each slice of the vocabulary
// leaves its highest logit, its sum of exponentials and its own likeliest (while it has the logits in registers anyhow), and whoever knows
// the token puts the slices together. All sums go in one order. Reference: sample/logprobs.cpp.
#pragma once

#include "reduce.cuh"
#include "sample.cuh"

namespace millrace {

constexpr int slice_warps = slice_threads / 32;
constexpr int lists_a_lane = (slices_max + 31) / 32;

struct SliceLogprobsRoom {
  uint32_t highest[slice_warps];  // as a key's upper half
  float partial[32];
  Key lists[slice_warps * step_logprobs_max];
};

// The `count` greatest keys of `lists` lists, [lists][count] in falling order, which a list that is too short fills up with 0. One warp.
__device__ inline void merge_lists(const Key* keys, int lists, int count, Key* merged) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int taken[lists_a_lane] = {};
  for (int i = 0; i < count; i++) {
    Key best = 0;
#pragma unroll
    for (int l = 0; l < lists_a_lane; l++) {
      const int list = lane + 32 * l;
      if (list < lists && taken[l] < count) best = max(best, keys[list * count + taken[l]]);
    }
    best = warp_greatest(best);
    // Keys are unique but for 0, and of those it does not matter whose they are.
#pragma unroll
    for (int l = 0; l < lists_a_lane; l++) {
      const int list = lane + 32 * l;
      if (list < lists && taken[l] < count && keys[list * count + taken[l]] == best) taken[l]++;
    }
    if (lane == 0) merged[i] = best;
  }
}

// What a slice knows of its logits, by the whole block. A thread's quad q begins at first + (q * slice_threads + thread) * 4.
__device__ inline void summarize_slice(const float (&values)[slice_quads][4], int first, int vocabulary, int count, SliceLogprobsRoom& room,
                                       float2* sum, Key* top) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  float highest = -INFINITY;
#pragma unroll
  for (int q = 0; q < slice_quads; q++)
#pragma unroll
    for (int i = 0; i < 4; i++) highest = fmaxf(highest, values[q][i]);
  const uint32_t ordered = __reduce_max_sync(all_lanes, static_cast<uint32_t>(key_of(highest, 0) >> 32));
  if (lane == 0) room.highest[warp] = ordered;
  __syncthreads();
  highest = logit_of(static_cast<Key>(__reduce_max_sync(all_lanes, room.highest[lane % slice_warps])) << 32);
  float total = 0;
  if (highest != -INFINITY) {
#pragma unroll
    for (int q = 0; q < slice_quads; q++)
#pragma unroll
      for (int i = 0; i < 4; i++) total += expf(values[q][i] - highest);
  }
  total = block_sum(total, room.partial);
  if (thread == 0) *sum = {highest, total};
  if (count == 0) return;

  // Each warp's likeliest, one after another: the greatest of what is less than the one before.
  Key last = ~Key{0};
  for (int n = 0; n < count; n++) {
    Key best = 0;
#pragma unroll
    for (int q = 0; q < slice_quads; q++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int token = first + (q * slice_threads + thread) * 4 + i;
        const Key key = token < vocabulary ? key_of(values[q][i], token) : 0;
        if (key < last) best = max(best, key);
      }
    last = warp_greatest(best);
    if (lane == 0) room.lists[warp * count + n] = last;
  }
  __syncthreads();
  if (warp == 0) merge_lists(room.lists, slice_warps, count, top);
}

// Writes a sample's log-probabilities, by the whole block. `lists` is shared memory for slices * count keys, `merged` for count.
__device__ inline void tell_logprobs(const SampleTask& task, const SliceResults& slices, const float* raw, int token, int count, Key* lists, Key* merged,
                                     SampleResult& result) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, slice_count = slices_of(task.vocabulary);
  count = min(min(count, step_logprobs_max), task.vocabulary);
  __syncthreads();  // the memory may have been something else
  for (int i = thread; i < slice_count * count; i += static_cast<int>(blockDim.x)) lists[i] = slices.top[i];
  __syncthreads();
  if (thread >= 32) return;
  merge_lists(lists, slice_count, count, merged);
  __syncwarp();

  float highest = -INFINITY;
  for (int i = lane; i < slice_count; i += 32) highest = fmaxf(highest, slices.sums[i].x);
  highest = logit_of(static_cast<Key>(__reduce_max_sync(all_lanes, static_cast<uint32_t>(key_of(highest, 0) >> 32))) << 32);
  double total = 0;
  for (int i = lane; i < slice_count; i += 32)
    if (slices.sums[i].x != -INFINITY) total += static_cast<double>(slices.sums[i].y) * exp(static_cast<double>(slices.sums[i].x) - highest);
  for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(all_lanes, total, distance);
  const double normalizer = static_cast<double>(highest) + log(total);
  const bool is_distribution = isfinite(normalizer);
  if (lane <= count) {
    const float logit = lane == 0 ? possible(raw[token]) : logit_of(merged[lane - 1]);
    result.logprobs[lane] = is_distribution ? static_cast<float>(logit - normalizer) : -INFINITY;
  }
  if (lane < count) result.ids[lane] = token_of(merged[lane]);
}

}  // namespace millrace
