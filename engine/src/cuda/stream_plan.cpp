// The host's half of matmul_stream.cu.
#include "stream_plan.h"

#include <algorithm>

#include "tensor_map.h"

namespace millrace {
namespace {

constexpr int divided_up(int value, int by) { return (value + by - 1) / by; }

MapShape shape_of_weights(const DeviceMatrix& w, int box_rows) {
  const bool is_bf16 = w.type == DeviceMatrix::Type::bf16;
  const int unit = stream_unit_columns(w.type);
  return {.type = is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8,
          .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
          .rank = 3,  // values of a unit, units of a row, rows
          .dimensions = {static_cast<uint64_t>(unit), static_cast<uint64_t>(divided_up(w.columns, unit)), static_cast<uint64_t>(w.rows)},
          .strides = {stream_unit_bytes, static_cast<uint64_t>(w.columns) * (is_bf16 ? 2 : 1)},
          .box = {static_cast<uint32_t>(unit), stream_stage_units, static_cast<uint32_t>(box_rows)}};
}

// A piece is a unit of 8 rows at once.
MapShape shape_of_pieces(const DeviceMatrix& w, int box_rows) {
  constexpr uint32_t piece_words = q4_piece_bytes / 4;
  const auto pieces = static_cast<uint64_t>(q4_pieces(w.columns));
  return {.type = CU_TENSOR_MAP_DATA_TYPE_UINT32,
          .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
          .rank = 3,
          .dimensions = {piece_words, pieces, static_cast<uint64_t>(divided_up(w.rows, q4_rows))},
          .strides = {q4_piece_bytes, pieces * q4_piece_bytes},
          .box = {piece_words, stream_stage_units, static_cast<uint32_t>(box_rows / q4_rows)},
          .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE};
}

}  // namespace

StreamPlan plan_stream(const DeviceMatrix& w, int tokens, MatmulOutput::Kind kind, int multiprocessors, const StreamTuning& tuning) {
  StreamPlan plan;
  plan.token_tiles = tokens <= 8 ? 1 : tokens <= 16 ? 2 : tokens <= 32 ? 4 : 8;
  plan.peers = tokens >= tuning.peers_tokens_min && multiprocessors > 1 ? 2 : 1;
  plan.boxes = kind == MatmulOutput::Kind::gate ? 2 : 1;
  const int blocks = kind == MatmulOutput::Kind::gate ? divided_up(w.rows / 2, stream_half_rows) : divided_up(w.rows, stream_block_rows);
  plan.grid = std::min(multiprocessors / plan.peers, divided_up(blocks, plan.peers)) * plan.peers;
  plan.cta_blocks = blocks / plan.grid;
  plan.longer_ctas = blocks % plan.grid;
  const int blocks_max = divided_up(blocks, plan.grid);
  plan.tiles = divided_up(blocks_max, tuning.tile_blocks_max);
  plan.tile_blocks = divided_up(blocks_max, plan.tiles);
  plan.steps = divided_up(w.columns, stream_stage_units * stream_unit_columns(w.type));
  plan.tokens_at = divided_up(plan.tile_blocks * stream_block_bytes(w.type), stream_swizzle_bytes) * stream_swizzle_bytes;
  plan.stage_bytes = plan.tokens_at + 8 * plan.token_tiles * stream_token_bytes(w.type);
  const bool is_wide = plan.token_tiles == 8 || w.rows >= tuning.wide_rows_min;
  plan.stages = std::clamp((is_wide ? tuning.wide_ring_bytes : tuning.ring_bytes) / plan.stage_bytes, 1, stream_stages_max);
  plan.shared_bytes = stream_stages_offset(plan.token_tiles) + static_cast<size_t>(plan.stages) * static_cast<size_t>(plan.stage_bytes);
  return plan;
}

StreamMaps stream_maps_of_weights(const DeviceMatrix& w, const StreamPlan& plan) {
  StreamMaps maps;
  for (int blocks = 1; blocks <= stream_tile_blocks_max; blocks++) {
    const int box_rows = blocks * stream_block_rows / plan.boxes;
    maps.by_blocks[blocks - 1] = map_of(w.values, w.type == DeviceMatrix::Type::q4 ? shape_of_pieces(w, box_rows) : shape_of_weights(w, box_rows));
  }
  return maps;
}

CUtensorMap stream_map_of_tokens(const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, int box_tokens) {
  return map_of(x, {.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                    .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                    .rank = 3,
                    .dimensions = {64, static_cast<uint64_t>(w.columns / 64), static_cast<uint64_t>(tokens)},
                    .strides = {stream_unit_bytes, static_cast<uint64_t>(w.columns) * 2},
                    .box = {64, static_cast<uint32_t>(stream_token_bytes(w.type) / stream_unit_bytes), static_cast<uint32_t>(box_tokens)}});
}

}  // namespace millrace
