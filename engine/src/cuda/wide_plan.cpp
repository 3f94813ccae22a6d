// The host's half of matmul_wide.cu.
#include "wide_plan.h"

#include <algorithm>

#include "error.h"
#include "tensor_map.h"

namespace millrace {
namespace {

constexpr int divided_up(int value, int by) { return (value + by - 1) / by; }

int blocks_of(const DeviceMatrix& w, MatmulOutput::Kind kind) { return kind == MatmulOutput::Kind::gate ? divided_up(w.rows / 2, wide_half_rows) : divided_up(w.rows, wide_block_rows); }

// A ring that holds fewer stages leaves too little on its way; one of a few more does for a while.
constexpr int stages_min = 3, stages_enough = 5;

// What a CTA does, in bytes of weights that memory brings meanwhile, as measured on an H100: what comes from L2 takes a quarter of that, products are half hidden, and
// a kernel that cannot fill its ring ahead or waits for the sums of others loses some microseconds.
int64_t cost_of(const WidePlan& plan, const DeviceMatrix& w) {
  constexpr int64_t alone_cost = 40 << 10, exchange_cost = 24 << 10;
  const int64_t rows = int64_t{plan.blocks_max()} * wide_block_rows, weights = rows * w.row_bytes(), tokens = int64_t{plan.n} * w.columns * 2;
  const int64_t products = int64_t{plan.row_tiles()} * plan.n * w.columns, exchanged = rows * plan.n * 4 * (plan.splits - 1);
  const int64_t read = (weights + tokens / 4 + products * 2 / 5 + exchanged / 2) / plan.splits;
  return read + exchange_cost * (plan.splits - 1) + (plan.is_alone ? alone_cost : plan.stages < stages_enough ? read / 10 : 0);
}

// Fills in what follows from n and splits; false where there are no such clusters, or a ring has no room. More clusters than run at a time are only taken
// where each is as large as can be.
bool complete(WidePlan& plan, const DeviceMatrix& w, MatmulOutput::Kind kind, const WideMachine& machine, const WideTuning& tuning) {
  const int blocks = blocks_of(w, kind), clusters_min = divided_up(blocks, wide_blocks_max), at_a_time = machine.clusters[plan.splits];
  plan.steps = divided_up(w.columns, wide_stage_columns(w.type));
  if (at_a_time == 0 || plan.splits > plan.steps || plan.splits > plan.n / 8 || (plan.splits > 1 && clusters_min > at_a_time)) return false;
  plan.clusters = std::max(std::min(at_a_time, blocks), clusters_min);
  plan.blocks = blocks / plan.clusters;
  plan.longer_clusters = blocks % plan.clusters;
  plan.tokens_at = plan.blocks_max() * wide_block_bytes;
  plan.stage_bytes = plan.tokens_at + plan.n * wide_stage_columns(w.type) * 2;
  const auto exchanged_bytes = static_cast<size_t>(2 * 64 * plan.row_tiles() * plan.n * 4);
  const auto fit = [&](int bytes) {
    plan.stages = std::min({bytes / plan.stage_bytes, wide_stages_max, plan.steps});
    plan.shared_bytes = wide_stages_offset + std::max(static_cast<size_t>(plan.stages) * static_cast<size_t>(plan.stage_bytes) + wide_behind_bytes, exchanged_bytes);
    return bytes / plan.stage_bytes >= stages_min && plan.shared_bytes <= static_cast<size_t>(bytes) + wide_stages_offset + wide_behind_bytes;
  };
  plan.is_alone = plan.is_alone || !wide_leaves_half(plan.n, plan.row_tiles()) || !fit(tuning.ring_bytes);
  return !plan.is_alone || fit(tuning.alone_bytes);
}

}  // namespace

WidePlan plan_wide(const DeviceMatrix& w, int tokens, MatmulOutput::Kind kind, const WideMachine& machine, const WideTuning& tuning) {
  WidePlan best;
  for (int splits = 1; splits <= wide_splits_max; splits++)
    for (const bool is_alone : {false, true}) {
      WidePlan plan{.n = divided_up(tokens, 32) * 32, .splits = splits, .is_alone = is_alone};
      if ((tuning.splits != 0 && tuning.splits != splits) || !complete(plan, w, kind, machine, tuning)) continue;
      if (best.n == 0 || cost_of(plan, w) < cost_of(best, w)) best = plan;
    }
  if (best.n == 0) throw CudaError("the GPU has room for no block of a matrix: is another process using it?");
  return best;
}

WideMaps wide_maps_of_weights(const DeviceMatrix& w, MatmulOutput::Kind kind, const WidePlan& plan) {
  const bool is_bf16 = w.type == DeviceMatrix::Type::bf16, is_gate = kind == MatmulOutput::Kind::gate;
  const auto row_bytes = static_cast<uint64_t>(w.row_bytes());
  const auto map = [&](int blocks) {
    return map_of(w.values, {.type = is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8,
                                 .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                 .rank = 4,
                                 .dimensions = {static_cast<uint64_t>(w.columns), wide_half_rows, 2, static_cast<uint64_t>(blocks_of(w, kind))},
                                 .strides = {row_bytes, (is_gate ? static_cast<uint64_t>(w.rows / 2) : wide_half_rows) * row_bytes, (is_gate ? wide_half_rows : wide_block_rows) * row_bytes},
                                 .box = {static_cast<uint32_t>(wide_stage_columns(w.type)), wide_half_rows, 2, static_cast<uint32_t>(blocks)}});
  };
  return {map(plan.blocks), map(std::min(plan.blocks + 1, wide_blocks_max))};
}

CUtensorMap wide_map_of_tokens(const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const WidePlan& plan) {
  constexpr uint64_t unit = 64;  // columns of a line in shared memory
  return map_of(x, {.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                        .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                        .rank = 3,
                        .dimensions = {unit, static_cast<uint64_t>(tokens), static_cast<uint64_t>(w.columns) / unit},
                        .strides = {static_cast<uint64_t>(w.columns) * 2, unit * 2},
                        .box = {unit, static_cast<uint32_t>(plan.n), static_cast<uint32_t>(wide_stage_columns(w.type)) / static_cast<uint32_t>(unit)}});
}

}  // namespace millrace
