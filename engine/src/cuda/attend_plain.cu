// Attention for heads of any width, one warp a token and head, by plain multiplications: right, but not tuned. Each lane has some of a head's
// dimensions; positions come one after another, in an order that depends on nothing but the token's own position.
#include "launch.h"
#include "kernels.h"
#include "reduce.cuh"

namespace millrace {
namespace {

constexpr int plain_warps = 4, lane_values_max = 16;

__device__ const __nv_bfloat16* place_of(const KvView& kv, int slot, int position, int head, int head_dim, int64_t offset) {
  const uint8_t* page = kv.base + slot * kv.slot_bytes + position / kv.page_tokens * kv.page_bytes;
  return reinterpret_cast<const __nv_bfloat16*>(page + offset + head * kv.head_bytes) + static_cast<int64_t>(position % kv.page_tokens) * head_dim;
}

__device__ void attend_token(const StepToken& token, int t, const AttendShape& shape, const KvView& kv, const __nv_bfloat16* q, int64_t q_stride, __nv_bfloat16* out,
                             int64_t out_stride) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, group = shape.heads / shape.kv_heads, head_dim = shape.head_dim;
  for (int head = static_cast<int>(blockIdx.y) * plain_warps + warp; head < shape.heads; head += plain_warps * static_cast<int>(gridDim.y)) {
    float query[lane_values_max], sum[lane_values_max] = {};
    for (int i = 0; i < lane_values_max; i++)
      query[i] = lane + 32 * i < head_dim ? __bfloat162float(q[t * q_stride + static_cast<int64_t>(head) * head_dim + lane + 32 * i]) : 0.0f;
    float largest = shape.sinks == nullptr ? -INFINITY : shape.sinks[head], total = shape.sinks == nullptr ? 0.0f : 1.0f;
    const int first = shape.window > 0 ? max(0, token.position + 1 - shape.window) : 0;
    for (int position = first; position <= token.position; position++) {
      const __nv_bfloat16* key = place_of(kv, token.slot, position, head / group, head_dim, kv.key_offset);
      float score = 0;
      for (int i = 0; i < lane_values_max && lane + 32 * i < head_dim; i++) score += query[i] * __bfloat162float(key[lane + 32 * i]);
      score = warp_sum(score);
      if (shape.soft_cap != 0) score = shape.soft_cap * tanhf(score / shape.soft_cap);
      const float raised = fmaxf(largest, score), kept = expf(largest - raised), weight = expf(score - raised);
      const __nv_bfloat16* value = place_of(kv, token.slot, position, head / group, head_dim, kv.value_offset);
      for (int i = 0; i < lane_values_max && lane + 32 * i < head_dim; i++) sum[i] = sum[i] * kept + weight * __bfloat162float(value[lane + 32 * i]);
      total = total * kept + weight;
      largest = raised;
    }
    for (int i = 0; i < lane_values_max && lane + 32 * i < head_dim; i++)
      out[t * out_stride + static_cast<int64_t>(head) * head_dim + lane + 32 * i] = __float2bfloat16(sum[i] / total);
  }
}

__global__ void __launch_bounds__(32 * plain_warps) plain_pieces(StepView step, AttendShape shape, KvView kv, const __nv_bfloat16* q, int64_t q_stride, __nv_bfloat16* out,
                                                                int64_t out_stride) {
  let_next_begin();
  wait_for_previous();
  for (int i = static_cast<int>(blockIdx.x); i < step.counts->pieces; i += static_cast<int>(gridDim.x)) {
    const AttendPiece piece = step.pieces[i];
    if (piece.chunk == 0) attend_token(step.tokens[piece.token], piece.token, shape, kv, q, q_stride, out, out_stride);
  }
}

__global__ void __launch_bounds__(32 * plain_warps) plain_tiles(StepView step, AttendShape shape, KvView kv, const __nv_bfloat16* q, int64_t q_stride, __nv_bfloat16* out,
                                                               int64_t out_stride) {
  let_next_begin();
  wait_for_previous();
  for (int i = static_cast<int>(blockIdx.x); i < step.counts->tiles; i += static_cast<int>(gridDim.x)) {
    const AttendTile tile = step.tiles[i];
    for (int t = tile.token; t < tile.token + tile.count; t++) attend_token(step.tokens[t], t, shape, kv, q, q_stride, out, out_stride);
  }
}

dim3 plain_grid(int items, int heads) { return dim3(static_cast<unsigned>(std::min(items, 4096)), static_cast<unsigned>((heads + plain_warps - 1) / plain_warps)); }

}  // namespace

void attend_pieces(cudaStream_t stream, const StepView& step, const AttendShape& shape, const KvView& kv, const __nv_bfloat16* q, int64_t q_stride, const AttendScratch&,
                   __nv_bfloat16* out, int64_t out_stride) {
  launch(stream, plain_grid(step.pieces_max, shape.heads), 32 * plain_warps, 0, plain_pieces, step, shape, kv, q, q_stride, out, out_stride);
}

void attend_tiles(cudaStream_t stream, const StepView& step, const AttendShape& shape, const KvView& kv, const __nv_bfloat16* q, int64_t q_stride, __nv_bfloat16* out,
                  int64_t out_stride) {
  launch(stream, plain_grid(step.tiles_max, shape.heads), 32 * plain_warps, 0, plain_tiles, step, shape, kv, q, q_stride, out, out_stride);
}

int attend_tile_tokens(const AttendShape&) { return 16; }

}  // namespace millrace
