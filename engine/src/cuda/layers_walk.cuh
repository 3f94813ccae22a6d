// Where a warp of layers.cu is among its CTA's stages: of which layer, matrix and tile the next one is, and where in the ring it lies.
#pragma once

#include "layers.h"
#include "tile_copy.cuh"

namespace millrace {

#ifdef __CUDACC__

constexpr int ring_slots = 32;

// The blocks of a matrix that are this CTA's.
struct OwnBlocks {
  int first, count;
  __device__ OwnBlocks(const LayersPlan& plan, const LayersPlan::Matrix& its) {
    const int moved = static_cast<int>(blockIdx.x) - its.shift, rank = moved < 0 ? moved + plan.grid : moved;
    first = rank * its.cta_blocks + min(rank, its.longer_ctas);
    count = its.cta_blocks + (rank < its.longer_ctas ? 1 : 0);
  }
};

// A stage of this CTA's: of which layer, matrix and tile it is, and where it lies. It is two of stream_plan.h's stages, one for each team of warps: their weights
// and tokens, and then the other's.
template <DeviceMatrix::Type type>
class StageWalk {
 public:
  int layer = 0, matrix = -1, step = 0;
  int block = 0, count = 0;        // of its tile: the first one, and how many
  uint32_t begin = 0, bytes = 0;   // of all stages and gaps before it; its own
  uint32_t at = 0, index = 0;      // in the ring; of all stages
  Turn turn;

  __device__ explicit StageWalk(const LayersPlan& plan) : plan_(plan) { next_matrix(); }
  __device__ bool exists() const { return layer < plan_.layers; }
  __device__ bool is_of(int its_layer, int its_matrix) const { return layer == its_layer && matrix == its_matrix; }
  __device__ uint32_t weights_at(int team) const { return at + (team == 0 ? 0 : bytes / 2); }
  __device__ uint32_t tokens_at(int team) const { return weights_at(team) + weights_bytes(); }
  __device__ __forceinline__ void advance() {
    const uint32_t passed = bytes;
    if (++step == steps_) next_tile();
    index++;
    turn.advance(ring_slots);
    begin += passed, at += passed;
    if (at + bytes > plan_.ring_bytes) begin += plan_.ring_bytes - at, at = 0;
  }
  // From its last stage, which lies there, on to the next tile. Whoever goes this way has no use for begin and index.
  __device__ void end_tile(uint32_t last_at, Turn last_turn) {
    at = last_at, turn = last_turn, step = steps_ - 1;
    advance();
  }
  __device__ uint32_t ring_bytes() const { return plan_.ring_bytes; }

 private:
  __device__ static uint32_t whole(uint32_t bytes) { return (bytes + stream_swizzle_bytes - 1) / stream_swizzle_bytes * stream_swizzle_bytes; }
  __device__ uint32_t weights_bytes() const { return whole(static_cast<uint32_t>(count * stream_block_bytes(type))); }
  __device__ void next_tile() {
    step = 0, block += count, left_ -= count;
    if (left_ > 0)
      take_tile();
    else
      next_matrix();
  }
  // The next one in which this CTA has blocks.
  __device__ void next_matrix() {
    left_ = 0;
    while (left_ == 0 && layer < plan_.layers) {
      if (++matrix == layer_matrices) matrix = 0, layer++;
      const LayersPlan::Matrix& its = plan_.matrices[matrix];
      const OwnBlocks own(plan_, its);
      block = own.first, left_ = own.count, steps_ = its.steps;
    }
    take_tile();
  }
  __device__ void take_tile() {
    count = min(left_, stream_tile_blocks_max);
    bytes = 2 * (weights_bytes() + whole(static_cast<uint32_t>(plan_.tokens * stream_token_bytes(type))));
  }

  const LayersPlan& plan_;
  int left_ = 0, steps_ = 0;  // blocks, from its tile's on; stages of a tile
};

#endif

}  // namespace millrace
