// What both attention kernels are made of: where keys and values lie, how they come into shared memory, and the tensor cores' fragments.
//
// Memory is read in runs: 16 positions of one head, which lie together whatever a page holds. A run has `dims` values a row in shared memory,
// head_dim rounded up to what a kernel was compiled for; the values beyond are zero, and so are rows of positions that nobody may see. Rows
// are 16 bytes apart more than they are long, so that the 8 rows that an ldmatrix reads at once lie in different banks.
// Weights are powers of two, of scores times log2(e). Sources: FlashAttention-2; PTX ISA, mma.m16n8k16 and ldmatrix.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "attend_element.cuh"
#include "kernels.h"
#include "launch.h"

namespace millrace {

constexpr int run_tokens = tile_tokens;
constexpr float log2_e = 1.4426950408889634f;
template <int dims, int value_bytes = 2>
constexpr uint32_t row_bytes = dims * value_bytes + 16;

// A KvView, and what divides a run's number by the runs of a page: exact while the one times the other is less than 2^30.
struct KvRuns {
  KvView view;
  int64_t run_bytes = 0;
  int page_runs = 0;
  uint32_t inverse = 0;  // 2^31 / page_runs, rounded up
};
inline KvRuns runs_of(const KvView& view, int head_dim) {
  const int page_runs = view.page_tokens / run_tokens;
  const auto inverse = ((int64_t{1} << 31) + page_runs - 1) / page_runs;
  return {view, tile_bytes_of(view.element, head_dim), page_runs, static_cast<uint32_t>(inverse)};
}

// What a kernel is told at its launch.
struct AttendTask {
  StepView step;
  AttendShape shape;
  KvRuns kv;
  const __nv_bfloat16* q = nullptr;  // [tokens][q_stride]
  int64_t q_stride = 0;
  __nv_bfloat16* out = nullptr;      // [tokens][out_stride]
  int64_t out_stride = 0;
  Activations as = Activations::bfloat16;  // of out
  AttendScratch scratch;
  int group = 0;                     // query heads of a KV head
  int blocks = 0;                    // that the queries of a KV head are divided into
};

#ifdef __CUDACC__

__device__ __forceinline__ const uint8_t* keys_of(const KvRuns& kv, int slot, int kv_head) {
  return kv.view.base + slot * kv.view.slot_bytes + kv_head * kv.view.head_bytes + kv.view.key_offset;
}
__device__ __forceinline__ int page_of_run(const KvRuns& kv, int run) { return static_cast<int>(__umulhi(2 * static_cast<uint32_t>(run) + 1, kv.inverse)); }
// From the first key of a slot's head to that of a run; a value lies as far behind the head's first value.
__device__ __forceinline__ int64_t offset_of_run(const KvRuns& kv, int run) {
  const int page = page_of_run(kv, run);
  return page * kv.view.page_bytes + (run - page * kv.page_runs) * kv.run_bytes;
}

__device__ __forceinline__ int first_seen(int position, int window) { return window > 0 ? max(0, position + 1 - window) : 0; }

__device__ __forceinline__ uint32_t shared_place(const void* memory) { return static_cast<uint32_t>(__cvta_generic_to_shared(memory)); }

// 16 bytes on their way to shared memory, or zeros there.
__device__ __forceinline__ void copy_or_clear(uint32_t to, const void* from, bool copies) {
  if (copies)
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  else
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
}
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the last `pending` groups of this thread's copies have come.
template <int pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Positions of a run that may be read: [from, upto), counted from its first.
struct Seen {
  int from, upto;
};
// Asks for one run of keys or values; `threads` threads share the work.
template <typename Kv, int dims, int threads>
__device__ __forceinline__ void copy_run(uint32_t to, const uint8_t* run, int head_dim, Seen seen, int thread) {
  constexpr int chunk_values = 16 / Kv::value_bytes, row_chunks = dims / chunk_values, chunks = run_tokens * row_chunks;
  constexpr uint32_t stride = row_bytes<dims, Kv::value_bytes>;
#pragma unroll 8
  for (int i = 0; i < (chunks + threads - 1) / threads; i++) {
    int row = (thread + i * threads) / row_chunks, chunk = (thread + i * threads) % row_chunks;
    // The same, where the compiler need not find out that the column stays.
    if (threads % row_chunks == 0) row = thread / row_chunks + i * (threads / row_chunks), chunk = thread % row_chunks;
    if (chunks % threads != 0 && row >= run_tokens) break;
    copy_or_clear(to + static_cast<uint32_t>(row) * stride + static_cast<uint32_t>(chunk) * 16, run + (row * head_dim + chunk * chunk_values) * Kv::value_bytes,
                  row >= seen.from && row < seen.upto && chunk * chunk_values < head_dim);
  }
}

// What a KV head's keys and values are times what is stored of them.
template <typename Kv>
__device__ __forceinline__ float key_scale(const KvRuns& kv, int kv_head) {
  if constexpr (Kv::is_scaled) return kv.view.key_scales[kv_head];
  return 1;
}
template <typename Kv>
__device__ __forceinline__ float value_scale(const KvRuns& kv, int kv_head) {
  if constexpr (Kv::is_scaled) return kv.view.value_scales[kv_head];
  return 1;
}

// Where a lane's row lies for load_matrices, from the corner of 16 rows x 32 bytes: the matrices are rows 0-7 and 8-15 of the left half, then
// of the right one; or with `across` both halves of rows 0-7, then of rows 8-15.
template <uint32_t stride>
__device__ __forceinline__ uint32_t lane_row(int lane, bool across) {
  const auto low = static_cast<uint32_t>(lane >> 3 & 1), high = static_cast<uint32_t>(lane >> 4);
  return ((across ? high : low) * 8 + static_cast<uint32_t>(lane & 7)) * stride + (across ? low : high) * 16;
}

__device__ __forceinline__ float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// Scores are what products yield times `key_scale`. Under a cap they become whole here, without one they stay as they are: this is what makes either an
// exponent of two.
__device__ __forceinline__ float exponent_factor(float soft_cap, float key_scale) { return soft_cap == 0 ? key_scale * log2_e : log2_e; }
// tanh by way of a power is as exact as float32 needs; the hardware's own is off by 2^-11.
template <int count>
__device__ __forceinline__ void cap_scores(float (&s)[count][4], float soft_cap, float key_scale) {
  if (soft_cap == 0) return;
  const float inverse = key_scale * (2 * log2_e / soft_cap);
#pragma unroll
  for (int n = 0; n < count; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) s[n][i] = soft_cap * (1 - __fdividef(2.0f, 1 + power_of_two(s[n][i] * inverse)));
}

// What sums of weights relative to 2^largest are multiplied by to be an answer. A sink is a weight that brings no value.
__device__ __forceinline__ float answer_factor(float largest, float total, const float* sinks, int head) {
  if (sinks == nullptr) return 1 / total;
  const float sink = sinks[head] * log2_e, raised = fmaxf(largest, sink), kept = power_of_two(largest - raised);
  return kept / (total * kept + power_of_two(sink - raised));
}

#endif

}  // namespace millrace
