// What becomes of the sums of matmul_wide.cu: those of all parts of the columns are added, scaled, and stored, added to what is there, or gated.
#pragma once

#include "activate.cuh"
#include "reduce.cuh"
#include "store.cuh"
#include "wide_task.cuh"

namespace millrace {

// The factor of each token's norm.
__device__ inline void find_factors(const WideTask& task) {
  constexpr int together = 4;
  const NormInput& norm = task.output.norm;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (int first = warp * together; first < task.tokens && norm.squares != nullptr; first += wide_warps * together) {
    float sums[together] = {};
#pragma unroll 8
    for (int i = lane; i < norm.count; i += 32)
#pragma unroll
      for (int k = 0; k < together; k++) sums[k] += norm.squares[min(first + k, task.tokens - 1) * norm.count + i];
#pragma unroll
    for (int k = 0; k < together; k++) {
      const float sum = warp_sum(sums[k]);
      if (lane == 0 && first + k < task.tokens) token_factors()[first + k] = rsqrtf(sum / static_cast<float>(norm.n) + norm.epsilon);
    }
  }
}

// Two rows of a thread, of which the second one may be the up row of the first: what their sums become.
struct WideRows {
  int row, other;
  bool exist[2];
  float scale[2], bias[2];

  __device__ WideRows(const WideTask& task, int block, int g) {
    const bool is_gate = task.output.kind == MatmulOutput::Kind::gate;
    row = block * (is_gate ? wide_half_rows : wide_block_rows) + g;
    other = row + task.half_rows;
    exist[0] = row < (is_gate ? task.half_rows : task.rows);
    exist[1] = other < task.rows;
    const int at[2] = {exist[0] ? row : 0, exist[1] ? other : 0};
#pragma unroll
    for (int i = 0; i < 2; i++) {
      scale[i] = task.scales == nullptr ? task.factor : task.factor * task.scales[at[i]];
      bias[i] = task.output.bias == nullptr ? 0.0f : task.output.bias[at[i]];
    }
  }
};

// Where the ring was, [64 rows of both groups][8 tokens][thread] of four sums.
template <typename Shape>
__device__ uint32_t sums_place(const WideRing& ring, int m, int q) {
  return ring.stage(0) + static_cast<uint32_t>(((m * (Shape::n / 8) + q) * wide_threads + static_cast<int>(threadIdx.x)) * sizeof(float4));
}
template <typename Shape>
__device__ void put_sums(const WideRing& ring, const float (&sums)[Shape::row_tiles][Shape::n / 8][4]) {
#pragma unroll
  for (int m = 0; m < Shape::row_tiles; m++)
#pragma unroll
    for (int q = 0; q < Shape::n / 8; q++) {
      const auto& four = sums[m][q];
      store_shared(sums_place<Shape>(ring, m, q), make_float4(four[0], four[1], four[2], four[3]));
    }
}

// Of what `add` left of two rows and two tokens.
__device__ __forceinline__ void leave_for_norm(const NormOutput& next, const WideRows& rows, int token, int lane, const float (&v)[4], const bool (&exists)[2], int width) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float square = v[i] * v[i] + v[2 + i] * v[2 + i];
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2) square += __shfl_xor_sync(0xffffffffu, square, distance);
    if (!exists[i]) continue;
    __nv_bfloat16* x = next.x + (token + i) * next.stride;
    store_value(x, rows.row, v[i] * next.weight[rows.row], next.as);
    store_value(x, rows.other, v[2 + i] * next.weight[rows.other], next.as);
    if (lane < 4) next.squares[(token + i) * (width / square_values) + rows.row / square_values] = square;
  }
}

// Of a block's two rows and the tokens 8q + 2t and the next one, four sums: of the first row, then of the second. `old` is what lies where they are added.
template <MatmulOutput::Kind kind>
__device__ __forceinline__ void finish(const WideTask& task, const WideRows& rows, int token, int lane, const float4& sums, const float (&old)[4]) {
  const MatmulOutput& output = task.output;
  const float all[4] = {sums.x, sums.y, sums.z, sums.w};
  float2 factors = {1, 1};
  if (output.norm.squares != nullptr) factors = *reinterpret_cast<const float2*>(token_factors() + token);  // those behind the last token's are not used
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = fmaf(all[i] * (i % 2 == 0 ? factors.x : factors.y), rows.scale[i / 2], rows.bias[i / 2]);
  const bool exists[2] = {token < task.tokens, token + 1 < task.tokens};
  if constexpr (kind == MatmulOutput::Kind::gate) {
    auto* y = static_cast<__nv_bfloat16*>(output.y) + token * output.stride;
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (rows.exist[0] && exists[i]) store_value(y + i * output.stride, rows.row, gated(output.activation, v[i], v[2 + i]), output.as);
  } else {
    float* y = static_cast<float*>(output.y) + token * output.stride + rows.row;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      v[i] += old[i];
      if (rows.exist[i / 2] && exists[i % 2]) y[i % 2 * output.stride + i / 2 * wide_half_rows] = v[i];
    }
    if constexpr (kind == MatmulOutput::Kind::add)
      if (output.next.weight != nullptr) leave_for_norm(output.next, rows, token, lane, v, exists, task.rows);
  }
}

// Every CTA of the cluster has put its sums: this one finishes every `splits`-th 8 tokens, several at once, so that what they read comes together.
template <typename Shape, MatmulOutput::Kind kind>
__device__ void finish_all(const WideTask& task, const WideRing& ring, const WidePart& part) {
  constexpr int together = Shape::n / 8 / wide_splits_max;
  const WideLane place;
  const int splits = task.plan.splits, rank = static_cast<int>(blockIdx.x) % splits, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (int m = 0; m < Shape::row_tiles && place.block(m) < part.count; m++) {
    const WideRows rows(task, part.first + place.block(m), place.g);
#pragma unroll 1
    for (int first = rank; first < Shape::n / 8; first += together * splits) {
      float4 sums[together][wide_splits_max];
      float old[together][4] = {};
#pragma unroll
      for (int i = 0; i < together; i++) {
        const int q = first + i * splits, token = 8 * q + 2 * place.t;
#pragma unroll
        for (int s = 0; s < wide_splits_max; s++) sums[i][s] = s < splits && q < Shape::n / 8 ? load_at(sums_place<Shape>(ring, m, q), static_cast<uint32_t>(s)) : float4{};
        if constexpr (kind == MatmulOutput::Kind::add) {
          const float* y = static_cast<const float*>(task.output.y) + token * task.output.stride + rows.row;
#pragma unroll
          for (int j = 0; j < 4; j++)
            if (rows.exist[j / 2] && token + j % 2 < task.tokens) old[i][j] = y[j % 2 * task.output.stride + j / 2 * wide_half_rows];
        }
      }
#pragma unroll
      for (int i = 0; i < together; i++) {
        float4 all = sums[i][0];
#pragma unroll
        for (int s = 1; s < wide_splits_max; s++) all.x += sums[i][s].x, all.y += sums[i][s].y, all.z += sums[i][s].z, all.w += sums[i][s].w;
        if (first + i * splits < Shape::n / 8) finish<kind>(task, rows, 8 * (first + i * splits) + 2 * place.t, lane, all, old[i]);
      }
    }
  }
}

}  // namespace millrace
