// Products of a stage whose weights are in four bits (q4.h), as those of stream_sum.cuh: float16 by float16.
//
// A unit of 8 rows is a piece, of which lane 4 * row + t takes the 16 bytes and the two halves that are its own: neighbours lie side by side, no two
// wait for the same banks. That is group t of a row, 32 columns, in 4 words of 2 mma each. Its tokens' values are half a line of 128 bytes, 4 chunks,
// of which threads of odd t take the later two first, as the words of odd groups have them: so that the 8 threads of a quarter of a warp meet 8
// different places here too.
//
// A word: a shift, 4 times and with or, 4 subtractions that are exact and 4 products, rounded once: 13 instructions for 8 weights, beside half a load,
// and for each 8 tokens 1 mma and a quarter of a load.
#pragma once

#include <cuda_fp16.h>

#include "stream_sum.cuh"

namespace millrace {

template <>
struct StreamLane<DeviceMatrix::Type::q4> {
  uint32_t weights, scales, tokens;

  __device__ StreamLane(int lane, int unit) {
    const int row = lane / 4, t = lane % 4, piece = unit * q4_piece_bytes;
    weights = static_cast<uint32_t>(piece + 16 * lane);
    scales = static_cast<uint32_t>(piece + q4_quants_bytes + 4 * lane);
    tokens = StreamLane<DeviceMatrix::Type::fp8>::at(4 * row + 2 * unit + t / 2, 6 * (t % 2));
  }
};

__device__ inline __half2 load_shared_halves(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
  return *reinterpret_cast<const __half2*>(&value);
}

// word & mask | 1024 in both halves, in one instruction: left to itself the compiler takes two, as one has room for one constant only.
__device__ inline uint32_t masked_in_1024(uint32_t word, uint32_t mask) {
  uint32_t bits;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(bits) : "r"(word), "r"(mask), "r"(0x64006400));
  return bits;
}

// Two weights, of four bits in each half of a word: the lowest, which become the mantissa of 1024 + quant, or those above them, of 1024 + 16 * quant.
__device__ inline uint32_t q4_weights(uint32_t word, bool is_upper, __half2 scale, __half2 minimum) {
  const uint32_t bits = masked_in_1024(word, is_upper ? 0x00f000f0u : 0x000f000fu);
  const __half2 raised = *reinterpret_cast<const __half2*>(&bits);
  const __half2 quants = is_upper ? __hfma2(raised, __float2half2_rn(0.0625f), __float2half2_rn(-64)) : __hsub2(raised, __float2half2_rn(1024));
  const __half2 weights = __hfma2(quants, scale, minimum);
  return *reinterpret_cast<const uint32_t*>(&weights);
}

__device__ inline uint32_t word_of(const uint4& chunk, int i) { return i == 0 ? chunk.x : i == 1 ? chunk.y : i == 2 ? chunk.z : chunk.w; }

// The i-th 8 halves that lie together: every second pair of two words' columns, of a row of a block's first half, and of its second.
__device__ inline StreamFragment fragment_of(const uint4 (&raw)[2], int i, const __half2 (&scales)[2], const __half2 (&minimums)[2]) {
  StreamFragment fragment;
#pragma unroll
  for (int w = 0; w < 2; w++)
#pragma unroll
    for (int j = 0; j < 4; j++) fragment.a[w][j] = q4_weights(word_of(raw[j % 2], i / 2 * 2 + w) >> j / 2 * 8, i % 2 == 1, scales[j % 2], minimums[j % 2]);
  return fragment;
}

template <int count, int T, int chains>
__device__ inline void add_products(uint32_t weights, const StreamRows<DeviceMatrix::Type::q4>& rows, uint32_t tokens, StreamSums<T> (&sums)[chains], StreamLane<DeviceMatrix::Type::q4> lane, int live) {
  uint4 raw[count][2];
  __half2 scales[count][2], minimums[count][2];
#pragma unroll
  for (int m = 0; m < count; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t piece = weights + static_cast<uint32_t>(2 * m) * rows.block_bytes + static_cast<uint32_t>(half) * rows.second_half;
      raw[m][half] = load_shared(piece + lane.weights);
      const __half2 both = load_shared_halves(piece + lane.scales);
      scales[m][half] = __low2half2(both);
      minimums[m][half] = __high2half2(both);
    }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t chunk = (tokens + lane.tokens) ^ static_cast<uint32_t>(16 * i);  // of the stage, so that none stays in a register beyond it
    StreamFragment fragment[count];
#pragma unroll
    for (int m = 0; m < count; m++) fragment[m] = fragment_of(raw[m], i, scales[m], minimums[m]);
#pragma unroll
    for (int n = 0; n < T; n++) {
      const uint4 b = load_shared_if(8 * n < live, chunk + static_cast<uint32_t>(n * stream_token_tile_bytes<DeviceMatrix::Type::q4>));
#pragma unroll
      for (int m = 0; m < count; m++) {
        const auto& a = fragment[m].a;
        multiply_add<DeviceMatrix::Type::q4>(sums[i % chains][m][n], a[0][0], a[0][1], a[0][2], a[0][3], b.x, b.y);
        multiply_add<DeviceMatrix::Type::q4>(sums[i % chains][m][n], a[1][0], a[1][1], a[1][2], a[1][3], b.z, b.w);
      }
    }
  }
}

}  // namespace millrace
