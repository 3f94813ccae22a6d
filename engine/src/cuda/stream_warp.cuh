// What the warps do that sum in matmul_stream.cu, and in layers.cu. Warp c + 4g has the columns of unit number c, c + 4, ... of its rows, which are
// blocks g and g + 2 of a tile, so that sums stay in registers for a whole tile; the four warps of a group then add theirs in the order of c, and finish
// a block's results together.
#pragma once

#include "stream_plan.h"
#ifdef __CUDACC__
#include "activate.cuh"
#include "norm_shared.cuh"
#include "reduce.cuh"
#include "stream_sum_q4.cuh"
#endif

namespace millrace {

constexpr int stream_classes = 4, stream_groups = 2, stream_warps = stream_classes * stream_groups, stream_group_threads = 32 * stream_classes;

// A matrix's results, and what its kernel knows of them.
struct alignas(16) StreamResult {
  MatmulOutput output;
  const float* scales = nullptr;
  int rows = 0, tokens = 0;
  int block_rows = 0;  // from a block's first row to the next one's
  int half_rows = 0;   // from a block's first row to that of its second half
  float factor = 1;    // of all results
  uint64_t* tagged = nullptr;  // [tokens][rows]: where results go instead, each with the launch's tag above it; or none
};

inline StreamResult stream_result(const DeviceMatrix& w, int tokens, const MatmulOutput& output) {
  StreamResult result{.output = output, .rows = w.rows, .tokens = tokens};
  if (w.type == DeviceMatrix::Type::fp8) result.scales = w.scales;
  if (w.type != DeviceMatrix::Type::bf16) result.factor = half_divisor;  // the products are of halves
  const bool is_gate = output.kind == MatmulOutput::Kind::gate;
  result.block_rows = is_gate ? stream_half_rows : stream_block_rows;
  result.half_rows = is_gate ? w.rows / 2 : stream_half_rows;
  return result;
}

#ifdef __CUDACC__

template <int T>
constexpr int sum_tiles = stream_sum_tiles(T);

// Which columns of a stage are a warp's, and where its threads find them.
template <DeviceMatrix::Type type>
struct StreamWarp {
  int group, team;  // of two teams one has columns in each stage
  int behind_step;
  StreamLane<type> lane;

  __device__ explicit StreamWarp(int columns) : lane(static_cast<int>(threadIdx.x) % 32, static_cast<int>(threadIdx.x) / 32 % stream_stage_units) {
    const int warp = static_cast<int>(threadIdx.x) / 32, t = static_cast<int>(threadIdx.x) % 4;
    group = warp / stream_classes;
    team = warp % stream_classes / stream_stage_units;
    // Behind an E4M3 row that ends within a unit lies the next one, and behind the last row anything, a NaN too, which is one even times zero.
    // Threads that would meet that take weights of the row's own for the zeros of x.
    const bool is_behind = type == DeviceMatrix::Type::fp8 && columns % 256 == warp % stream_stage_units * 128 + 64 && t >= 2;
    behind_step = is_behind ? columns / 256 : -1;
  }
  // Adds what it has in a stage of its team's, number `step` of its tile, to the sums of `count` blocks.
  template <int count, int T, int chains>
  __device__ __forceinline__ void add(int step, uint32_t weights, uint32_t tokens, const StreamRows<type>& rows, StreamSums<T> (&sums)[chains], int live = 8 * T) const {
    StreamLane<type> inside = lane;
    if constexpr (type == DeviceMatrix::Type::fp8) inside.weights ^= step == behind_step ? 64u : 0u;
    if constexpr (count > 0) add_products<count, T, chains>(weights + static_cast<uint32_t>(group) * rows.block_bytes, rows, tokens, sums, inside, live);
  }
};

// Of a group, in shared memory.
struct StreamExchange {
  float* sums;           // [blocks at once][classes][tiles][8 tokens][row_floats]
  const float* factors;  // [tokens], of the norm
  uint32_t tag = 0;
};

// A token's factor of a norm, by one warp.
__device__ inline float norm_factor(const NormInput& norm, int token, int lane) {
  float sum = 0;
#pragma unroll 4
  for (int i = lane; i < norm.count; i += 32) sum += norm.squares[token * norm.count + i];
  return rsqrtf(warp_sum(sum) / static_cast<float>(norm.n) + norm.epsilon);
}

// What a thread needs from memory to finish a block: asked for while there is still much to sum, if there are registers for it. A thread has one row, of each
// 8 tokens one.
template <int T>
struct StreamAhead {
  static constexpr bool is_early = T <= 2;
  float scale, up_scale, bias, up_bias, weight;  // as they are read: nothing waits for them here
  float y[is_early ? T : 1];                     // else it is read when it is needed

  __device__ __forceinline__ void load(const StreamResult& result, int block) {
    load_constants(result, block);
    load_y(result, block);
  }
  // What no kernel writes.
  __device__ __forceinline__ void load_constants(const StreamResult& result, int block) {
    const MatmulOutput& output = result.output;
    const bool is_gate = output.kind == MatmulOutput::Kind::gate;
    const int row = row_of(result, block), up_row = result.half_rows + row;
    const bool exists = row < rows_end(result);
    const auto value = [&](const float* values, int at, bool is_wanted, float otherwise) { return values != nullptr && exists && is_wanted ? values[at] : otherwise; };
    scale = value(result.scales, row, true, 1);
    up_scale = value(result.scales, up_row, is_gate, 1);
    bias = value(output.bias, row, true, 0);
    up_bias = value(output.bias, up_row, is_gate, 0);
    weight = value(output.next.weight, row, true, 0);
  }
  // Whoever writes y runs no more.
  __device__ __forceinline__ void load_y(const StreamResult& result, int block) {
    const MatmulOutput& output = result.output;
    const int row = row_of(result, block), token = group_thread() / rows_of(result);
    const float* before = static_cast<const float*>(output.y) + token * output.stride + row;
#pragma unroll
    for (int i = 0; is_early && i < T; i++)
      y[i] = output.kind == MatmulOutput::Kind::add && row < rows_end(result) && token + 8 * i < result.tokens ? before[8 * i * output.stride] : 0;
  }

 private:
  __device__ static int group_thread() { return static_cast<int>(threadIdx.x) % stream_group_threads; }
  __device__ static int rows_of(const StreamResult& result) { return result.output.kind == MatmulOutput::Kind::gate ? stream_half_rows : stream_block_rows; }
  __device__ static int rows_end(const StreamResult& result) { return result.output.kind == MatmulOutput::Kind::gate ? result.half_rows : result.rows; }
  __device__ static int row_of(const StreamResult& result, int block) { return block * result.block_rows + group_thread() % rows_of(result); }
};

// One result of a row and a token, or of a gate row and its up row; returns what `store` and `add` leave.
template <int T>
__device__ __forceinline__ float finish(const StreamResult& result, const StreamExchange& exchange, const StreamAhead<T>& ahead, int row, int token, float sum, float up) {
  const MatmulOutput& output = result.output;
  const int64_t line = token * output.stride;
  if (output.norm.squares != nullptr) {
    const float factor = exchange.factors[token];
    sum *= factor;
    up *= factor;
  }
  sum = fmaf(sum, result.factor * ahead.scale, ahead.bias);
  if (output.kind == MatmulOutput::Kind::gate) {
    up = fmaf(up, result.factor * ahead.up_scale, ahead.up_bias);
    store_value(static_cast<__nv_bfloat16*>(output.y) + line, row, gated(output.activation, sum, up), output.as);
    return 0;
  }
  if (result.tagged != nullptr) {
    const uint64_t value = uint64_t{exchange.tag} << 32 | __float_as_uint(sum);
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(result.tagged + static_cast<int64_t>(token) * result.rows + row), "l"(value) : "memory");
    return 0;
  }
  float* y = static_cast<float*>(output.y) + line + row;
  if (output.kind == MatmulOutput::Kind::add) {
    float before;
    if constexpr (StreamAhead<T>::is_early)
      before = token < 8 ? ahead.y[0] : ahead.y[T - 1];
    else
      before = *y;
    sum += before;
  }
  return *y = sum;
}

// All threads of a group. The numbers are constants, so that a kernel takes three barriers and not all there are.
__device__ __forceinline__ void sync_group(int group) {
  if (group == 0)
    asm volatile("bar.sync 1, %0;" ::"n"(stream_group_threads) : "memory");
  else
    asm volatile("bar.sync 2, %0;" ::"n"(stream_group_threads) : "memory");
}

// Adds up what the four warps of a group have of `count` blocks, every second one from `first` on, in the warps' order, and stores it.
template <int T, int at_once>
__device__ __forceinline__ void finish_blocks(const StreamResult& result, const StreamExchange& exchange, const StreamAhead<T>* ahead, int first, int count, const float (*sums)[T][4]) {
  constexpr int tiles = sum_tiles<T>, row_floats = stream_sum_row_floats, class_floats = tiles * stream_sum_tile_floats, block_floats = stream_classes * class_floats;
  const int thread = static_cast<int>(threadIdx.x) % stream_group_threads, group = static_cast<int>(threadIdx.x) / stream_group_threads;
  const int lane = thread % 32, its_class = thread / 32;
  const bool is_gate = result.output.kind == MatmulOutput::Kind::gate;
  const int rows = is_gate ? stream_half_rows : stream_block_rows, rows_end = is_gate ? result.half_rows : result.rows;
#pragma unroll
  for (int n = 0; n < T; n += tiles) {
    sync_group(group);  // who reads the sums before these has read them
    // A row of the exchange is a token; its length keeps the threads of a warp in different banks.
    float* mine = exchange.sums + its_class * class_floats + 2 * (lane % 4) * row_floats + lane / 4;
#pragma unroll
    for (int m = 0; m < at_once; m++)
#pragma unroll
      for (int i = 0; i < tiles; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) mine[m * block_floats + i * stream_sum_tile_floats + j % 2 * row_floats + j / 2 * 8] = sums[m][n + i][j];
    sync_group(group);
#pragma unroll
    for (int m = 0; m < at_once; m++) {
      if (m >= count) break;
#pragma unroll 1
      for (int item = thread; item < tiles * 8 * rows; item += stream_group_threads) {
        const int token = n * 8 + item / rows, row = (first + 2 * m) * result.block_rows + item % rows;
        const bool exists = token < result.tokens && row < rows_end;
        const float* from = exchange.sums + m * block_floats + item / rows * row_floats + item % rows;
        const auto total = [&](int i) { return from[i] + from[class_floats + i] + from[2 * class_floats + i] + from[3 * class_floats + i]; };
        const float value = exists ? finish(result, exchange, ahead[m], row, token, total(0), is_gate ? total(stream_half_rows) : 0.0f) : 0.0f;
        if (result.output.next.weight != nullptr) leave_for_norm(result.output.next, ahead[m].weight, result.rows, row, token, value, exists);
      }
    }
  }
}

#endif

}  // namespace millrace
