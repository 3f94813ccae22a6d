// Products of a stage: 16 rows of weights, times 8 tokens at a time, by mma.m16n8k16 with float32 sums: of bfloat16, or of float16 where the
// weights are E4M3, each of whose values float16 holds; stream_sum_q4.cuh has those of four bits.
//
// Which columns an mma multiplies is free as long as weights and tokens agree, so that each thread takes columns that lie together: fragments
// are loads of 16 bytes, and both operands come from rows as they are in memory. A warp takes one unit of each row of the stage, 8 chunks of
// 16 bytes; thread t of the four that share a row takes chunks t % 2 + 4 * (t / 2), and these plus 2. The copy engine has put chunk c of line l
// (of 128 bytes) at place c ^ (l % 8); with this choice the 8 threads of a quarter of a warp always meet 8 different places, so that no two
// wait for the same banks. This holds for both operands in both types.
#pragma once

#include <cstdint>

#include "operand.cuh"
#include "stream_plan.h"

namespace millrace {

template <int T>
using StreamSums = float[2][T][4];  // [block of the warp][8 tokens][the fragment of mma: rows g and g + 8, tokens 2t and 2t + 1]

__device__ inline uint4 load_shared(uint32_t address) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "r"(address));
  return value;
}

// Or zeros: what is not there takes no time either.
__device__ inline uint4 load_shared_if(bool is_there, uint32_t address) {
  uint4 value = {};
  asm volatile("{\n\t.reg .pred is_there;\n\tsetp.ne.u32 is_there, %5, 0;\n\t@is_there ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
               : "+r"(value.x), "+r"(value.y), "+r"(value.z), "+r"(value.w)
               : "r"(address), "r"(static_cast<uint32_t>(is_there)));
  return value;
}

template <DeviceMatrix::Type weights>
__device__ inline void multiply_add(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  if constexpr (weights == DeviceMatrix::Type::bf16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// For device code, which may not call what the host can.
template <DeviceMatrix::Type type>
constexpr int stream_token_tile_bytes = 8 * stream_token_bytes(type);

// Where a thread's first chunk lies: from the start of a half block's 8 rows, and of a row of 8 tokens. `unit` is the stage's, 0 or 1.
template <DeviceMatrix::Type type>
struct StreamLane {
  uint32_t weights, tokens;

  __device__ StreamLane(int lane, int unit) {
    const int row = lane / 4, t = lane % 4;
    weights = at(stream_stage_units * row + unit, t % 2 + 4 * (t / 2));
    // A chunk of 16 E4M3 weights meets two of 8 tokens' values: a unit of weights two units of these.
    tokens = type == DeviceMatrix::Type::bf16 ? weights : at(4 * row + 2 * unit + t / 2, 2 * (t % 2));
  }
  __device__ static uint32_t at(int line, int chunk) { return static_cast<uint32_t>(line * stream_unit_bytes + ((chunk ^ (line % 8)) * 16)); }
};

// How a stage's rows lie: block by block, or all gate rows and then all up rows.
template <DeviceMatrix::Type type>
struct StreamRows {
  static constexpr int half_bytes = stream_half_bytes(type);
  uint32_t block_bytes, second_half;  // from one block to the next; from a block's first half to its second

  __device__ StreamRows(int boxes, int blocks)
      : block_bytes(boxes == 1 ? 2 * half_bytes : half_bytes), second_half(static_cast<uint32_t>((boxes == 1 ? 1 : blocks) * half_bytes)) {}
};

// Adds one unit of `count` blocks, which lie two blocks apart from `weights` on, to their sums: to one of several in turn, so that few products wait for each other.
// `live`: so many tokens are there from the thread's first on, every eighth of which is its own.
template <int count, int T, int chains>
__device__ inline void add_products(uint32_t weights, const StreamRows<DeviceMatrix::Type::bf16>& rows, uint32_t tokens, StreamSums<T> (&sums)[chains], StreamLane<DeviceMatrix::Type::bf16> lane, int live) {
#pragma unroll(T < 4 ? 2 : 1)
  for (uint32_t i = 0; i < 2; i++) {
    uint4 a[count][2];
#pragma unroll
    for (int m = 0; m < count; m++) {
      const uint32_t block = weights + (lane.weights ^ 32 * i) + static_cast<uint32_t>(2 * m) * rows.block_bytes;
      a[m][0] = load_shared(block);
      a[m][1] = load_shared(block + rows.second_half);
    }
#pragma unroll
    for (int n = 0; n < T; n++) {
      const uint32_t tile = tokens + static_cast<uint32_t>(n * stream_token_tile_bytes<DeviceMatrix::Type::bf16>);
      const uint4 b = load_shared_if(8 * n < live, tile + (lane.tokens ^ 32 * i));
#pragma unroll
      for (int m = 0; m < count; m++) {
        multiply_add<DeviceMatrix::Type::bf16>(sums[i % chains][m][n], a[m][0].x, a[m][1].x, a[m][0].y, a[m][1].y, b.x, b.y);
        multiply_add<DeviceMatrix::Type::bf16>(sums[i % chains][m][n], a[m][0].z, a[m][1].z, a[m][0].w, a[m][1].w, b.z, b.w);
      }
    }
  }
}

struct StreamFragment {
  uint32_t a[2][4];  // of two mma's
};

// Of 16 columns of a row of a block's first half, and of its second: those whose halves lie first, or second; see half_place.
__device__ inline StreamFragment fragment_of(const uint4& first, const uint4& second, uint32_t half) {
  const auto pair = [half](uint32_t word) { return halves_of(word, half); };
  return {{{pair(first.x), pair(second.x), pair(first.y), pair(second.y)}, {pair(first.z), pair(second.z), pair(first.w), pair(second.w)}}};
}

template <int count, int T, int chains>
__device__ inline void add_products(uint32_t weights, const StreamRows<DeviceMatrix::Type::fp8>& rows, uint32_t tokens, StreamSums<T> (&sums)[chains], StreamLane<DeviceMatrix::Type::fp8> lane, int live) {
#pragma unroll(T < 4 ? 2 : 1)
  for (uint32_t i = 0; i < 2; i++) {
    uint4 raw[count][2];
#pragma unroll
    for (int m = 0; m < count; m++) {
      const uint32_t block = weights + (lane.weights ^ 32 * i) + static_cast<uint32_t>(2 * m) * rows.block_bytes;
      raw[m][0] = load_shared(block);
      raw[m][1] = load_shared(block + rows.second_half);
    }
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      const uint32_t chunk = (tokens + lane.tokens) ^ (64 * i ^ 16 * h);  // of the stage, so that none stays in a register beyond it
      StreamFragment fragment[count];
#pragma unroll
      for (int m = 0; m < count; m++) fragment[m] = fragment_of(raw[m][0], raw[m][1], h);
#pragma unroll
      for (int n = 0; n < T; n++) {
        const uint4 b = load_shared_if(8 * n < live, chunk + static_cast<uint32_t>(n * stream_token_tile_bytes<DeviceMatrix::Type::fp8>));
#pragma unroll
        for (int m = 0; m < count; m++) {
          const auto& a = fragment[m].a;
          multiply_add<DeviceMatrix::Type::fp8>(sums[i % chains][m][n], a[0][0], a[0][1], a[0][2], a[0][3], b.x, b.y);
          multiply_add<DeviceMatrix::Type::fp8>(sums[i % chains][m][n], a[1][0], a[1][1], a[1][2], a[1][3], b.z, b.w);
        }
      }
    }
  }
}

}  // namespace millrace
