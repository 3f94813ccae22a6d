// Blocks of a file as four bits in our order, and those as bfloat16. q4.h has the order.
//
// pack: a thread a word, 8 quants gathered from a file's block. Bytes: 18, 20 or 144 / 8 read and 20 written for 32 values. It runs at load alone.
// unpack: one block 8 rows and two pieces, a warp a row, a thread a word: 2 * 256 bytes side by side are written. Bytes: 5 bits read and 16 written a value.
// Reference: dequantize_block of format/blocks.h, and unpacking by the layout's words, in test/cuda/q4.test.cpp.
#include <cuda_fp16.h>

#include "../format/blocks.h"
#include "launch.h"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int pack_threads = 256, unpack_threads = 32 * q4_rows, group_words = q4_group_columns / 8;
constexpr int unpack_columns = 2 * q4_piece_columns;

struct Scales {
  float scale, minimum;
};

__device__ float float_of(uint16_t half) { return __half2float(__ushort_as_half(half)); }

// Of a group of a row's blocks: its scales, and the quant of its column i.
struct GroupQ4_0 {
  const BlockQ4_0& block;
  __device__ GroupQ4_0(const void* row, int group) : block(static_cast<const BlockQ4_0*>(row)[group]) {}
  __device__ Scales scales() const { return {float_of(block.scale), -8 * float_of(block.scale)}; }
  __device__ uint32_t quant(int i) const { return block.nibbles[i % 16] >> i / 16 * 4 & 15; }
};
struct GroupQ4_1 {
  const BlockQ4_1& block;
  __device__ GroupQ4_1(const void* row, int group) : block(static_cast<const BlockQ4_1*>(row)[group]) {}
  __device__ Scales scales() const { return {float_of(block.scale), float_of(block.minimum)}; }
  __device__ uint32_t quant(int i) const { return block.nibbles[i % 16] >> i / 16 * 4 & 15; }
};
struct GroupQ4_K {
  const BlockQ4_K& block;
  const int sub;
  __device__ GroupQ4_K(const void* row, int group) : block(static_cast<const BlockQ4_K*>(row)[group / 8]), sub(group % 8) {}
  __device__ Scales scales() const {
    const uint8_t* six = block.scales;  // as sub_scale() reads them
    const int scale = sub < 4 ? six[sub] & 63 : (six[sub + 4] & 15) | six[sub - 4] >> 6 << 4;
    const int minimum = sub < 4 ? six[sub + 4] & 63 : six[sub + 4] >> 4 | six[sub] >> 6 << 4;
    return {float_of(block.scale) * static_cast<float>(scale), -float_of(block.minimum) * static_cast<float>(minimum)};
  }
  __device__ uint32_t quant(int i) const { return block.quants[sub / 2 * 32 + i] >> sub % 2 * 4 & 15; }
};

struct PackTask {
  const uint8_t* blocks;
  int64_t words, row_bytes, first_row;
  int groups, pieces;  // of a row in the file; of one of ours
  uint8_t* to;
};

template <typename Group>
__global__ void __launch_bounds__(pack_threads) pack_kernel(PackTask task) {
  let_next_begin();
  wait_for_previous();
  const int64_t at = int64_t{blockIdx.x} * pack_threads + threadIdx.x;
  if (at >= task.words) return;
  const int word = static_cast<int>(at % group_words), number = static_cast<int>(at / group_words % task.groups);
  const int64_t file_row = at / group_words / task.groups, row = task.first_row + file_row;
  const Group group(task.blocks + file_row * task.row_bytes, number);
  const int column = q4_word_column(number, word), lane = q4_lane(row, number);
  uint32_t quants = 0;
  for (int i = 0; i < 8; i++) quants |= group.quant(column + i) << (i % 2 * 16 + i / 2 * 4);
  uint8_t* piece = task.to + q4_piece_at(row, number, task.pieces);
  reinterpret_cast<uint32_t*>(piece)[lane * group_words + word] = quants;
  const Scales scales = group.scales();
  if (word == 0) reinterpret_cast<__half2*>(piece + q4_quants_bytes)[lane] = __floats2half2_rn(scales.scale, scales.minimum);
}

struct UnpackTask {
  const uint8_t* from;
  int pieces, columns, rows;
  __nv_bfloat16* to;
};

__global__ void __launch_bounds__(unpack_threads) unpack_kernel(UnpackTask task) {
  let_next_begin();
  wait_for_previous();
  const int row = static_cast<int>(blockIdx.y) * q4_rows + static_cast<int>(threadIdx.x) / 32, thread = static_cast<int>(threadIdx.x) % 32;
  const int group = static_cast<int>(blockIdx.x) * 2 * q4_piece_groups + thread / group_words, word = thread % group_words;
  const int column = group * q4_group_columns + q4_word_column(group, word), lane = q4_lane(row, group);
  if (row >= task.rows || column >= task.columns) return;
  const uint8_t* piece = task.from + q4_piece_at(row, group, task.pieces);
  const uint32_t quants = reinterpret_cast<const uint32_t*>(piece)[lane * group_words + word];
  const float2 scales = __half22float2(reinterpret_cast<const __half2*>(piece + q4_quants_bytes)[lane]);
  const auto value = [&](int shift) { return fmaf(static_cast<float>(quants >> shift & 15), scales.x, scales.y); };
  uint4 stored;
  auto* pairs = reinterpret_cast<__nv_bfloat162*>(&stored);
#pragma unroll
  for (int i = 0; i < 4; i++) pairs[i] = __floats2bfloat162_rn(value(4 * i), value(16 + 4 * i));
  *reinterpret_cast<uint4*>(task.to + int64_t{row} * task.columns + column) = stored;
}

}  // namespace

void pack_q4(cudaStream_t stream, Type type, const void* blocks, int64_t count, int64_t columns, const DeviceMatrix& w, int64_t first_row) {
  const auto groups = static_cast<int>(columns / q4_group_columns);
  const PackTask task{static_cast<const uint8_t*>(blocks), count * groups * group_words, columns / values_a_block(type) * bytes_a_block(type), first_row, groups,
                      q4_pieces(w.columns), static_cast<uint8_t*>(const_cast<void*>(w.values))};
  void (*const kernel)(PackTask) = type == Type::q4_0 ? pack_kernel<GroupQ4_0> : type == Type::q4_1 ? pack_kernel<GroupQ4_1> : pack_kernel<GroupQ4_K>;
  launch(stream, static_cast<unsigned>((task.words + pack_threads - 1) / pack_threads), pack_threads, 0, kernel, task);
}

void unpack_q4(cudaStream_t stream, const DeviceMatrix& w, int first_row, int count, __nv_bfloat16* values) {
  const int pieces = q4_pieces(w.columns);
  const UnpackTask task{static_cast<const uint8_t*>(w.values) + q4_piece_at(first_row, 0, pieces), pieces, w.columns, count, values};
  const dim3 grid(static_cast<unsigned>((w.columns + unpack_columns - 1) / unpack_columns), static_cast<unsigned>((count + q4_rows - 1) / q4_rows));
  launch(stream, grid, unpack_threads, 0, unpack_kernel, task);
}

}  // namespace millrace
