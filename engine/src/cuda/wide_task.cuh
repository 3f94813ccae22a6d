// What a CTA of matmul_wide.cu is to do, where it and its threads find their part, and how stages come into its ring.
#pragma once

#include "tile_copy.cuh"
#include "wide_plan.h"

namespace millrace {

constexpr int wide_groups = 2, wide_warps = 4 * wide_groups, wide_threads = 32 * wide_warps;

struct WideTask {
  MatmulOutput output;
  const float* scales = nullptr;
  int rows = 0, tokens = 0;
  int half_rows = 0;  // from a block's first row to that of its second half
  float factor = 1;   // of all results
  WidePlan plan;
};

// What a kernel is compiled for: the type of weights, tokens, and how many times 64 rows a warpgroup has.
template <DeviceMatrix::Type weights, int tokens, int row_tiles_a_group>
struct Wide {
  static constexpr DeviceMatrix::Type type = weights;
  static constexpr int n = tokens, row_tiles = row_tiles_a_group;
  static constexpr int units = wide_stage_columns(weights) / 64;  // of x in a stage, each [tokens][64]
  static constexpr uint32_t unit_bytes = n * 128, tokens_bytes = units * unit_bytes;
};

extern __shared__ __align__(1024) uint8_t wide_shared[];

__device__ inline float* token_factors() { return reinterpret_cast<float*>(wide_shared + wide_barrier_bytes); }

struct WideRing {
  uint32_t begin, stage_bytes;
  __device__ uint32_t stage(int slot) const { return begin + wide_stages_offset + static_cast<uint32_t>(slot) * stage_bytes; }
  __device__ uint32_t full(int slot) const { return begin + static_cast<uint32_t>(slot) * 8; }
  __device__ uint32_t empty(int slot) const { return begin + static_cast<uint32_t>(wide_stages_max + slot) * 8; }
};

// What this CTA sums: blocks of its cluster, and columns from stage number `from` to the one before `upto`.
struct WidePart {
  int first, count;
  int from, upto;
  __device__ explicit WidePart(const WidePlan& plan) {
    const int cluster = static_cast<int>(blockIdx.x) / plan.splits, rank = static_cast<int>(blockIdx.x) % plan.splits;
    first = cluster * plan.blocks + min(cluster, plan.longer_clusters);
    count = plan.blocks + (cluster < plan.longer_clusters ? 1 : 0);
    from = plan.steps * rank / plan.splits;
    upto = plan.steps * (rank + 1) / plan.splits;
  }
};

// What asks for stages: the first warp goes through this together, so that addresses are uniform, and its first thread asks.
template <typename Shape>
struct WideLoader {
  const WideMaps& w;
  const CUtensorMap& x;
  const WideTask& task;
  const WideRing& ring;
  const WidePart& part;

  __device__ void load_weights(int slot, int step) const {
    if (threadIdx.x != 0) return;
    barrier_expect(ring.full(slot), static_cast<uint32_t>(part.count * wide_block_bytes) + Shape::tokens_bytes);
    copy_blocks(ring.stage(slot), part.count == task.plan.blocks ? w.blocks : w.one_more, step * wide_stage_columns(Shape::type), part.first, ring.full(slot), evict_first_policy());
  }
  __device__ void load_tokens(int slot, int step) const {
    if (threadIdx.x == 0) copy_tile(ring.stage(slot) + static_cast<uint32_t>(task.plan.tokens_at), x, {0, 0, step * Shape::units}, ring.full(slot));
  }
  // Fills the slot of a stage that was multiplied, once the other warps have done that too.
  __device__ void refill(const Turn& turn, int step) const {
    const int next = step + task.plan.stages;
    if (threadIdx.x >= 32 || next >= part.upto) return;
    barrier_wait(ring.empty(turn.slot), turn.parity);
    load_weights(turn.slot, next);
    load_tokens(turn.slot, next);
  }
};

// Where a thread's rows are, in a stage and in the matrix.
struct WideLane {
  int group, warp, g, t;
  __device__ WideLane() {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    group = __shfl_sync(0xffffffffu, thread / 128, 0);
    warp = thread / 32 % 4;
    g = lane / 4;
    t = lane % 4;
  }
  // The block, of the cluster's, that is the warp's.
  __device__ int block(int row_tile) const { return (group + wide_groups * row_tile) * 4 + warp; }
  // Of the row that the thread names to ldmatrix, from the beginning of a stage: the matrices are rows 0-7 and 8-15 of the left half of 32 bytes, then of the right one.
  __device__ uint32_t line(int row_tile, int count) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, row = lane % 16, chunk = lane / 16;
    const int own = min(block(row_tile), count - 1);  // where there is none, anything may be multiplied
    return static_cast<uint32_t>(own * wide_block_bytes + row * wide_stage_bytes + (chunk ^ row % 8) * 16);
  }
};

}  // namespace millrace
