// How matmul_stream.cu divides a matrix: numbers that the host chooses, and the maps by which the copy engine finds tiles.
//
// A block is 16 rows: 16 that follow one another, or 8 gate rows and the 8 up rows that belong to them. A CTA has a run of blocks, as many as
// every other or one more, and takes them in tiles of up to 4. A tile is walked in stages of 256 bytes of each row, which are two units of
// 128, and all tokens' values for these columns; of four bits a unit is 128 columns, a piece of q4.h. A ring of stages in shared memory is filled
// ahead of those who sum.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace millrace {

constexpr int stream_block_rows = 16, stream_half_rows = 8, stream_tile_blocks_max = 4;
constexpr int stream_unit_bytes = 128, stream_stage_units = 2, stream_stages_max = 16, stream_swizzle_bytes = 1024;
// Of a stage.
constexpr int stream_half_bytes(DeviceMatrix::Type type) {
  return stream_stage_units * (type == DeviceMatrix::Type::q4 ? q4_piece_bytes : stream_half_rows * stream_unit_bytes);
}
constexpr int stream_block_bytes(DeviceMatrix::Type type) { return 2 * stream_half_bytes(type); }
static_assert(stream_half_rows == q4_rows);

// Columns of weights in a unit.
constexpr int stream_unit_columns(DeviceMatrix::Type type) { return type == DeviceMatrix::Type::bf16 ? 64 : 128; }
// Bytes of one token's values in a stage.
constexpr int stream_token_bytes(DeviceMatrix::Type type) { return stream_stage_units * stream_unit_columns(type) * 2; }

// Sums that warps hand each other: of two groups, four warps each, a block at a time and 16 tokens of it; see stream_sum.cuh.
constexpr int stream_sum_row_floats = 20, stream_sum_tile_floats = 8 * stream_sum_row_floats;
constexpr int stream_sum_tiles(int token_tiles) { return token_tiles < 2 ? token_tiles : 2; }
// Where the ring begins in shared memory: behind barriers and sums.
constexpr uint32_t stream_barrier_bytes = 2 * stream_stages_max * 8;
// Between them, of two groups, the factors of a norm for each token.
constexpr uint32_t stream_factor_bytes = 2 * stream_tokens_max * 4;
constexpr uint32_t stream_stages_offset(int token_tiles) {
  const uint32_t bytes = stream_barrier_bytes + stream_factor_bytes + static_cast<uint32_t>(2 * 4 * stream_sum_tiles(token_tiles) * stream_sum_tile_floats) * 4;
  return (bytes + 1023) / 1024 * 1024;
}

// What measurements chose. Two CTAs of neighbouring kernels share a multiprocessor, so that each has less than half of its memory: the next one is
// to fill its ring while this one works and what stands between them runs.
struct StreamTuning {
  int ring_bytes = 100 << 10;       // of shared memory
  int wide_ring_bytes = 192 << 10;  // for more than 32 tokens, where a CTA is alone for its registers' sake, and for the longest matrices
  int wide_rows_min = 1 << 16;
  int peers_tokens_min = 17;        // from so many tokens on, two CTAs share what they read of x
  int tile_blocks_max = stream_tile_blocks_max;
};

// No choice here has a say in a result's bits: which warp sums which columns, and in which order, is the same in all plans.
struct StreamPlan {
  int token_tiles = 0;  // of 8 tokens: 1, 2, 4 or 8
  int grid = 0, peers = 1;
  int cta_blocks = 0, longer_ctas = 0;  // the blocks of each CTA, and how many CTAs at the grid's beginning have one more
  int tiles = 0;        // of a CTA
  int tile_blocks = 0;  // of the largest tile
  int steps = 0;        // stages of a tile
  int boxes = 0;        // of rows that lie together, in a block: 1 or 2
  int stages = 0;       // of the ring
  int stage_bytes = 0, tokens_at = 0;  // where in it x begins
  size_t shared_bytes = 0;
};
StreamPlan plan_stream(const DeviceMatrix& w, int tokens, MatmulOutput::Kind kind, int multiprocessors, const StreamTuning& tuning);

// Tiles of a box's rows x one stage of w, and of some tokens x one stage of x. Values beyond a row's end or the last token come as
// zeros, except that an E4M3 row of an odd number of half units runs on into the next one: there it is x that is zero. A map of four bits counts
// pieces' rows.
struct StreamMaps {
  CUtensorMap by_blocks[stream_tile_blocks_max];  // for tiles of 1, 2, ... blocks
};
StreamMaps stream_maps_of_weights(const DeviceMatrix& w, const StreamPlan& plan);
CUtensorMap stream_map_of_tokens(const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, int box_tokens);

void matmul_stream(cudaStream_t stream, const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const MatmulOutput& output,
                   const StreamTuning& tuning);

}  // namespace millrace
