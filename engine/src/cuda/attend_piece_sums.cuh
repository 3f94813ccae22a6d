// The arithmetic of attend_pieces.cu: what one warp makes of the runs that it takes, in registers.
#pragma once

#include "attend.cuh"

namespace millrace {

// A chunk as one block takes it.
struct PieceItem {
  int piece, token, kv_head, first_query;  // of the head's group
  int slot, from, upto;                    // positions seen in this chunk
  int first_live, live;                    // the token's pieces in which it sees anything, this one's number or not
};

// Items are numbered piece by piece, KV head by KV head, and by the `blocks` that a head's queries make.
__device__ inline PieceItem item_at(const StepView& step, const AttendShape& shape, int blocks, int index, int block_queries) {
  const int head_block = index / blocks, number = head_block / shape.kv_heads;
  const AttendPiece piece = step.pieces[number];
  const StepToken token = step.tokens[piece.token];
  const int chunk_tokens = step.chunk_tokens, begin = piece.chunk * chunk_tokens, first = first_seen(token.position, shape.window);
  const int first_chunk = first / chunk_tokens;
  return {number,     piece.token, head_block % shape.kv_heads, (index % blocks) * block_queries,
          token.slot, max(begin, first), min(begin + chunk_tokens, token.position + 1), piece.first + first_chunk, piece.count - first_chunk};
}

// What one warp knows of its queries: lane 4g + t has queries 2t and 2t + 1 of each tile, and the dimensions of each 16 that rows g and g + 8 are.
template <typename Kv, int dims, int tiles>
struct WarpSums {
  static constexpr uint32_t stride = row_bytes<dims, Kv::value_bytes>;
  float o[dims / 16][tiles][4];
  float largest[tiles][2], total[tiles][2];  // times log2(e); a lane's total is of its own positions
  uint32_t q[dims / 16][tiles][2];
  float key_scale;

  __device__ __forceinline__ void begin(const AttendTask& task, const PieceItem& item, int lane) {
    key_scale = millrace::key_scale<Kv>(task.kv, item.kv_head);
#pragma unroll
    for (int n = 0; n < tiles; n++) {
      const int query = item.first_query + n * 8 + lane / 4;
      const auto* row = task.q + item.token * task.q_stride + static_cast<int64_t>(item.kv_head * task.group + query) * task.shape.head_dim;
#pragma unroll
      for (int d = 0; d < dims / 16; d++) {
        const bool is_there = query < task.group && d * 16 < task.shape.head_dim;
        const auto* pair = reinterpret_cast<const uint32_t*>(row + d * 16 + lane % 4 * 2);
        q[d][n][0] = is_there ? pair[0] : 0;
        q[d][n][1] = is_there ? pair[4] : 0;
        for (float& each : o[d][n]) each = 0;
      }
      for (int i = 0; i < 2; i++) largest[n][i] = -INFINITY, total[n][i] = 0;
    }
  }

  // Adds a run, of which at least one position is seen: the largest score is finite from there on.
  __device__ __forceinline__ void add(uint32_t keys, uint32_t values, Seen seen, float soft_cap, int lane) {
    float s[tiles][4] = {};
    const uint32_t key_row = keys + lane_row<stride>(lane, false), value_row = values + lane_row<stride>(lane, Kv::values_across);
#pragma unroll
    for (int d = 0; d < dims / 16; d += Kv::steps) {
      uint32_t k[4];
      load_matrices(k, key_row + static_cast<uint32_t>(d / Kv::steps) * 32);
#pragma unroll
      for (int h = 0; h < Kv::steps; h++) {
        const Operand rows = Kv::key_rows(k, h);
#pragma unroll
        for (int n = 0; n < tiles; n++) Kv::multiply_add(s[n], rows.part, q[d + h][n][0], q[d + h][n][1]);
      }
    }
    cap_scores(s, soft_cap, key_scale);
    uint32_t p[tiles][2];
#pragma unroll
    for (int n = 0; n < tiles; n++) weigh(s[n], n, seen, lane, exponent_factor(soft_cap, key_scale), p[n]);
#pragma unroll
    for (int d = 0; d < dims / 16; d += Kv::steps) {
      uint32_t v[4];
      load_transposed(v, value_row + static_cast<uint32_t>(d / Kv::steps) * 32);
#pragma unroll
      for (int h = 0; h < Kv::steps; h++) {
        const Operand rows = Kv::value_rows(v, h);
#pragma unroll
        for (int n = 0; n < tiles; n++) Kv::multiply_add(o[d + h][n], rows.part, p[n][0], p[n][1]);
      }
    }
  }

  // Scores, times `factor`, become weights, as the operand of the second product, and all sums so far relative to the largest score.
  __device__ __forceinline__ void weigh(float (&s)[4], int n, Seen seen, int lane, float factor, uint32_t (&p)[2]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int position = lane / 4 + i / 2 * 8;
      s[i] = position >= seen.from && position < seen.upto ? s[i] * factor : -INFINITY;
    }
    float kept[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float raised = fmaxf(s[i], s[i + 2]);
      for (int distance = 4; distance < 32; distance *= 2) raised = fmaxf(raised, __shfl_xor_sync(full_warp, raised, distance));
      raised = fmaxf(raised, largest[n][i]);
      kept[i] = power_of_two(largest[n][i] - raised);
      largest[n][i] = raised;
      s[i] = power_of_two(s[i] - raised), s[i + 2] = power_of_two(s[i + 2] - raised);
      total[n][i] = total[n][i] * kept[i] + (s[i] + s[i + 2]);
    }
#pragma unroll
    for (int d = 0; d < dims / 16; d++)
      for (int i = 0; i < 4; i++) o[d][n][i] *= kept[i % 2];
    for (int i = 0; i < 2; i++) {
      const uint32_t pair = Kv::pair(s[2 * i], s[2 * i + 1]);
      asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(p[i]) : "r"(pair));
    }
  }
};

}  // namespace millrace
