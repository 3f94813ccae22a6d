// The first kernel of sampling: adjusted = logits + biases, then penalties, then -inf where a token is barred or masked; and the likeliest
// token of each slice, so that a greedy sample's logits are read once and never written.
//
// logits, adjusted: [samples][vocabulary]. Grid: a block a slice of 4096 tokens of one sample; a thread holds 16 logits in registers. What
// is adjusted is written only where the draw will read it. Penalties: each block counts the history's tokens that fall in its slice, in
// shared memory and by integers, so that no order matters; the history comes from the cache.
// Bytes: vocabulary * 4 read, as many written for a sample that is adjusted and drawn. Reference: sample/sampler.cpp.
#include "sample_logprobs.cuh"

namespace millrace {
namespace {

constexpr uint32_t in_prompt = 0x80000000u;  // beside the count of a token in the answer
constexpr int ids_a_load = 4;

struct SliceRoom {
  union {
    float values[slice_tokens];
    uint32_t seen[slice_tokens];
    SliceLogprobsRoom logprobs;
  };
  StepBias biases[slice_threads];
  uint32_t barred[slice_tokens / 32];
  Key best[slice_warps];
};

using Values = float[slice_quads][4];

// Within the slice, of the first of a thread's four tokens.
__device__ int place_of(int quad) { return (quad * slice_threads + static_cast<int>(threadIdx.x)) * 4; }

// By all threads. A token that stands in the list twice gets its biases one after the other, as the list has them: the thread of its first
// entry adds them all.
__device__ void add_biases(const StepBias* biases, int count, int first, SliceRoom& room, Values& values) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int q = 0; q < slice_quads; q++) *reinterpret_cast<float4*>(room.values + place_of(q)) = {values[q][0], values[q][1], values[q][2], values[q][3]};
  for (int begin = 0; begin < count; begin += slice_threads) {
    const int entries = min(slice_threads, count - begin);
    const StepBias mine = thread < entries ? biases[begin + thread] : StepBias{-1, 0.0f};
    __syncthreads();  // the values are there, or those before are added
    room.biases[thread] = mine;
    __syncthreads();
    const int at = mine.token - first;
    if (mine.token < 0 || at < 0 || at >= slice_tokens) continue;
    bool is_first = true;
    for (int i = 0; i < thread; i++) is_first &= room.biases[i].token != mine.token;
    if (!is_first) continue;
    float sum = room.values[at];
    for (int i = thread; i < entries; i++)
      if (room.biases[i].token == mine.token) sum += room.biases[i].bias;
    room.values[at] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int q = 0; q < slice_quads; q++) {
    const float4 read = *reinterpret_cast<const float4*>(room.values + place_of(q));
    values[q][0] = read.x, values[q][1] = read.y, values[q][2] = read.z, values[q][3] = read.w;
  }
}

__device__ void penalize(const StepSample& sample, const int32_t* history, int first, SliceRoom& room, Values& values) {
#pragma unroll
  for (int q = 0; q < slice_quads; q++) *reinterpret_cast<uint4*>(room.seen + place_of(q)) = {0, 0, 0, 0};
  __syncthreads();
  const int position = sample.position, generated_from = sample.generated_from;
  for (int begin = static_cast<int>(threadIdx.x); begin < position; begin += ids_a_load * slice_threads) {
    int32_t ids[ids_a_load];
#pragma unroll
    for (int i = 0; i < ids_a_load; i++) ids[i] = begin + i * slice_threads < position ? __ldg(history + begin + i * slice_threads) : -1;
#pragma unroll
    for (int i = 0; i < ids_a_load; i++) {
      const int at = ids[i] - first;
      if (ids[i] < 0 || at < 0 || at >= slice_tokens) continue;
      if (begin + i * slice_threads < generated_from)
        atomicOr(&room.seen[at], in_prompt);
      else
        atomicAdd(&room.seen[at], 1u);
    }
  }
  __syncthreads();
  const float repetition = sample.repetition_penalty, presence = sample.presence_penalty, frequency = sample.frequency_penalty;
#pragma unroll
  for (int q = 0; q < slice_quads; q++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t seen = room.seen[place_of(q) + i], generated = seen & ~in_prompt;
      if (seen == 0) continue;
      float logit = values[q][i];
      logit = logit > 0 ? logit / repetition : logit * repetition;
      // Not as one multiply-add: the processor's result has two roundings.
      if (generated > 0) logit -= __fadd_rn(presence, __fmul_rn(frequency, static_cast<float>(generated)));
      values[q][i] = logit;
    }
}

// Marks the slice's barred tokens, a bit each.
__device__ void mark_barred(const int32_t* barred, int count, int first, SliceRoom& room) {
  for (int i = static_cast<int>(threadIdx.x); i < slice_tokens / 32; i += slice_threads) room.barred[i] = 0;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < count; i += slice_threads) {
    const int at = barred[i] - first;
    if (at >= 0 && at < slice_tokens) atomicOr(&room.barred[at / 32], 1u << (at % 32));
  }
  __syncthreads();
}

__device__ void adjust_slice(const StepView& step, const SampleTask& task, const StepSample& sample, int first, SliceRoom& room, Values& values) {
  const int flags = sample.flags;
  if ((flags & bias_flag) != 0) add_biases(step.biases + sample.bias_first, sample.bias_count, first, room, values);
  if ((flags & penalty_flag) != 0) penalize(sample, task.history + sample.slot * task.history_stride, first, room, values);
  if ((flags & barred_flag) != 0) mark_barred(step.barred + sample.barred_first, sample.barred_count, first, room);
  const uint32_t* mask = (flags & mask_flag) != 0 ? task.masks + static_cast<int64_t>(sample.mask) * task.mask_words : nullptr;
#pragma unroll
  for (int q = 0; q < slice_quads; q++) {
    const int place = place_of(q), word = (first + place) / 32;
    uint32_t forbidden = (flags & barred_flag) != 0 ? room.barred[place / 32] : 0u;
    if (mask != nullptr) forbidden |= ~(word < task.mask_words ? __ldg(mask + word) : 0u);
#pragma unroll
    for (int i = 0; i < 4; i++) values[q][i] = (forbidden >> ((place + i) % 32) & 1u) != 0 ? -INFINITY : possible(values[q][i]);
  }
}

__device__ void store_slice(float* row, int first, int vocabulary, const Values& values) {
#pragma unroll
  for (int q = 0; q < slice_quads; q++) {
    const int token = first + place_of(q);
    if (vocabulary % 4 == 0) {
      if (token < vocabulary) *reinterpret_cast<float4*>(row + token) = {values[q][0], values[q][1], values[q][2], values[q][3]};
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (token + i < vocabulary) row[token + i] = values[q][i];
    }
  }
}

// The slice's likeliest token. Those beyond the vocabulary are impossible and have the highest ids: never that.
__device__ Key likeliest_of_slice(int first, const Values& values, SliceRoom& room) {
  float highest = -INFINITY;
  int token = first + place_of(0);
#pragma unroll
  for (int q = 0; q < slice_quads; q++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (values[q][i] > highest) highest = values[q][i], token = first + place_of(q) + i;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const Key best = warp_greatest(key_of(highest, token));
  if (lane == 0) room.best[warp] = best;
  __syncthreads();
  return warp_greatest(room.best[lane % slice_warps]);
}

__global__ void __launch_bounds__(slice_threads, 4) adjust_kernel(StepView step, SampleTask task) {
  __shared__ __align__(16) SliceRoom room;
  let_next_begin();
  wait_for_previous();
  const int s = static_cast<int>(blockIdx.y), slice = static_cast<int>(blockIdx.x), first = slice * slice_tokens;
  const StepSample& sample = step.samples[s];
  const int samples = step.counts->samples, slot = sample.slot, flags = sample.flags;
  if (s >= samples || slot < 0) return;

  Values values;
  const int64_t row = static_cast<int64_t>(s) * task.vocabulary;
#pragma unroll
  for (int q = 0; q < slice_quads; q++) load_quad(task.logits + row, first + place_of(q), task.vocabulary, values[q]);
  const SliceResults results = slice_results(task, s);
  if ((flags & logprobs_flag) != 0) {
    const int count = min(min(sample.logprobs, step_logprobs_max), task.vocabulary);
    summarize_slice(values, first, task.vocabulary, count, room.logprobs, results.sums + slice, results.top + slice * count);
    __syncthreads();  // the room becomes something else
  }
  if ((flags & adjust_flags) != 0) {
    adjust_slice(step, task, sample, first, room, values);
    if (!is_greedy(sample)) store_slice(task.adjusted + row, first, task.vocabulary, values);
  }
  const Key best = likeliest_of_slice(first, values, room);
  if (threadIdx.x == 0) results.best[slice] = best;
}

}  // namespace

void adjust(cudaStream_t stream, const StepView& step, const SampleTask& task) {
  const dim3 grid(static_cast<unsigned>(slices_of(task.vocabulary)), static_cast<unsigned>(step.samples_max));
  launch(stream, grid, slice_threads, 0, adjust_kernel, step, task);
}

}  // namespace millrace
