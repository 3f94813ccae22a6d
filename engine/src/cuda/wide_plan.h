// How matmul_wide.cu divides a matrix: numbers that the host chooses, and the maps by which the copy engine finds tiles.
//
// A block is 16 rows: 16 that follow one another, or 8 gate rows and the 8 up rows that belong to them. A cluster of CTAs has a run of up to 16 blocks, as many
// as every other or one more, and each of its CTAs a part of their columns. It goes through these in stages of 128 bytes of each row, and all tokens' values for these columns.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace millrace {

constexpr int wide_block_rows = 16, wide_blocks_max = 16, wide_stage_bytes = 128, wide_stages_max = 16, wide_splits_max = 4;

constexpr int wide_half_rows = wide_block_rows / 2, wide_block_bytes = wide_block_rows * wide_stage_bytes;
constexpr int wide_stage_columns(DeviceMatrix::Type type) { return type == DeviceMatrix::Type::bf16 ? 64 : 128; }
// Barriers, and the factors of a norm for each token. Tiles begin at a multiple of 1 KiB, after which their pattern repeats.
constexpr uint32_t wide_barrier_bytes = 2 * wide_stages_max * 8, wide_stages_offset = 1024;
// Behind the ring, that 64 rows of which a tile has 16 may run on into.
constexpr uint32_t wide_behind_bytes = 3 * wide_block_bytes;
static_assert(wide_barrier_bytes + wide_tokens_max * 4 <= wide_stages_offset);

struct WideTuning {
  int ring_bytes = 106 << 10;   // of shared memory, where two CTAs of neighbouring kernels share a multiprocessor: the next one fills its ring while this one works
  int alone_bytes = 208 << 10;  // where their registers do not let them, or that holds too few stages
  int splits = 0;               // of columns; 0: as estimated
};

struct WidePlan {
  int n = 0;                    // tokens that are computed: 32, 64, 96 or 128
  int splits = 1;               // CTAs of a cluster
  int clusters = 0;
  int blocks = 0, longer_clusters = 0;  // the blocks of each cluster, and how many clusters at the grid's beginning have one more
  int steps = 0;                // stages of whole rows
  int stages = 0;               // of the ring
  bool is_alone = false;
  int stage_bytes = 0, tokens_at = 0;  // where in it x begins
  size_t shared_bytes = 0;

  int blocks_max() const { return blocks + (longer_clusters > 0 ? 1 : 0); }
  // How many times 64 rows each of two warpgroups has: 1 or 2.
  int row_tiles() const { return blocks_max() > 8 ? 2 : 1; }
};
// How many clusters of so many CTAs run at a time.
struct WideMachine {
  int clusters[wide_splits_max + 1];
};
WidePlan plan_wide(const DeviceMatrix& w, int tokens, MatmulOutput::Kind kind, const WideMachine& machine, const WideTuning& tuning);
// Whether a CTA leaves half of a multiprocessor to the next kernel's.
constexpr bool wide_leaves_half(int n, int row_tiles) { return n / 2 * row_tiles <= 64; }

// A cluster's blocks x one stage of w, and all tokens x one stage of x. Weights lie as [block][half][8 rows][stage]; columns beyond a row's end and tokens beyond the
// last one come as zeros.
struct WideMaps {
  CUtensorMap blocks, one_more;
};
WideMaps wide_maps_of_weights(const DeviceMatrix& w, MatmulOutput::Kind kind, const WidePlan& plan);
CUtensorMap wide_map_of_tokens(const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const WidePlan& plan);

void matmul_wide(cudaStream_t stream, const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const MatmulOutput& output, const WideTuning& tuning);

}  // namespace millrace
