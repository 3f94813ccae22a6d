// Attention of many tokens of one row, where attend_wide.cu has none: FlashAttention-2 by mma.sync. A block takes up to 128 queries that read the same KV head, packed as
// (token, head of the group) with the heads of a token together, and goes over keys and values 64 positions at a time, in their order.
//
// Each warp has rows of its own, and what it knows of them stays in its registers: for head_dim 128 two times 16 rows, so that a key or value that
// comes from shared memory is multiplied twice. The next 64 positions are on their way while these are computed. What a block may not see
// at all is neither read nor computed, and only warps at the diagonal or at a window's edge mask scores. From head_dim 257 on, two warps share
// rows: both compute all weights, each multiplies one half of the values' dimensions.
// Grid: one block an item (tile, KV head, block of queries), later tiles first, since these read most. Where that makes too few blocks, tiles are
// divided into chunks of their context, whose partial results a second kernel merges: a warp for each token and head.
// Flops: 4 * head_dim for each query and position seen. Bytes: q and out once, keys and values once for each block of queries, mostly from L2.
#include <algorithm>
#include <type_traits>

#include "attend_merge.cuh"
#include "attend_tile.cuh"
#include "store.cuh"

namespace millrace {
namespace {

extern __shared__ __align__(128) uint8_t tiles_memory[];

template <typename Kv, int dims>
struct TileForm {
  static constexpr int halves = dims > 256 ? 2 : 1;              // that a value's dimensions are divided into
  static constexpr int row_warps = dims <= 128 || halves == 2 ? 4 : 8, warp_rows = dims <= 128 ? 32 : 16;
  static constexpr int rows = row_warps * warp_rows, threads = 32 * row_warps * halves;
  static constexpr int positions = dims > 256 ? 32 : 64;
  static constexpr int blocks_min = dims <= 128 ? 2 : 1;
  static constexpr uint32_t stride = row_bytes<dims, Kv::value_bytes>;  // of keys and values
  static constexpr uint32_t queries_bytes = rows * row_bytes<dims>, half_bytes = positions * stride, stage_bytes = 2 * half_bytes;
  static constexpr size_t shared_bytes = size_t{queries_bytes} + 2 * stage_bytes;
};
template <int dims>
constexpr int form_rows = TileForm<InBfloat16, dims>::rows;  // of any element
constexpr int rows_of(int head_dim) { return head_dim > 256 ? form_rows<512> : form_rows<128>; }
static_assert(form_rows<64> == rows_of(64) && form_rows<96> == rows_of(96) && form_rows<256> == rows_of(256));

template <typename Kv, int dims>
__device__ __forceinline__ void copy_queries(const AttendTask& task, const TileItem& item, uint32_t to) {
  using Form = TileForm<Kv, dims>;
  constexpr int row_chunks = dims / 8;
#pragma unroll 4
  for (int at = static_cast<int>(threadIdx.x); at < Form::rows * row_chunks; at += Form::threads) {
    const int row = at / row_chunks, chunk = at % row_chunks, packed = item.first_row + row;
    const int token = item.token + packed / task.group, head = item.kv_head * task.group + packed % task.group;
    const __nv_bfloat16* from = task.q + token * task.q_stride + static_cast<int64_t>(head) * task.shape.head_dim + chunk * 8;
    copy_or_clear(to + static_cast<uint32_t>(row) * row_bytes<dims> + static_cast<uint32_t>(chunk) * 16, from, packed < item.rows && chunk * 8 < task.shape.head_dim);
  }
}

// Keys and values of the positions from `begin` on, a multiple of `positions`.
template <typename Kv, int dims>
__device__ __forceinline__ void copy_stage(const AttendTask& task, const TileItem& item, int begin, uint32_t to) {
  using Form = TileForm<Kv, dims>;
#pragma unroll 1
  for (int at = 0; at < Form::positions; at += run_tokens) {
    const Seen seen = {item.from - begin - at, item.upto - begin - at};
    const uint8_t* keys = item.keys + offset_of_run(task.kv, static_cast<uint32_t>(begin + at) / run_tokens);
    const uint8_t* values = keys + (task.kv.view.value_offset - task.kv.view.key_offset);
    const uint32_t place = to + static_cast<uint32_t>(at) * Form::stride;
    copy_run<Kv, dims, Form::threads>(place, keys, task.shape.head_dim, seen, static_cast<int>(threadIdx.x));
    copy_run<Kv, dims, Form::threads>(place + Form::half_bytes, values, task.shape.head_dim, seen, static_cast<int>(threadIdx.x));
  }
}

// What one warp knows of its rows: of each 16, lane 4g + t has rows g and g + 8, and of each 8 positions 2t and 2t + 1; of dimensions see store.
template <typename Kv, int dims>
struct RowSums {
  using Form = TileForm<Kv, dims>;
  static constexpr int blocks = Form::warp_rows / 16, columns = dims / Form::halves;
  float o[blocks][columns / 8][4];
  float largest[blocks][2], total[blocks][2];  // a lane's total is of its own positions
  float key_scale;

  __device__ __forceinline__ void begin(float scale) {
    key_scale = scale;
#pragma unroll
    for (int b = 0; b < blocks; b++) {
      for (int i = 0; i < 2; i++) largest[b][i] = -INFINITY, total[b][i] = 0;
      for (auto& fragment : o[b])
        for (float& each : fragment) each = 0;
    }
  }

  // Adds the stage's positions, from `begin` on. `queries`, `keys` and `values` are corners of what the warp reads, of values but for `first_column`, and `position`
  // has its rows'.
  __device__ __forceinline__ void add(uint32_t queries, uint32_t keys, uint32_t values, int first_column, const int* position, int begin, const AttendShape& shape, int lane) {
    const int first = position[0], last = position[Form::warp_rows - 1];
    if (begin > last || begin + Form::positions <= first_seen(first, shape.window)) return;
    float s[blocks][Form::positions / 8][4] = {};
    score(s, queries, keys, lane);
    const bool masks = begin < first_seen(last, shape.window) || begin + Form::positions > first + 1;
#pragma unroll
    for (int b = 0; b < blocks; b++) {
      cap_scores(s[b], shape.soft_cap, key_scale);
      if (masks) mask(s[b], position + b * 16 + lane / 4, begin + lane % 4 * 2, shape.window);
      weigh(s[b], b, exponent_factor(shape.soft_cap, key_scale));
    }

    const uint32_t value_row = values + static_cast<uint32_t>(first_column * Kv::value_bytes) + lane_row<Form::stride>(lane, false);
#pragma unroll
    for (int n = 0; n < Form::positions / 16; n++) {
      uint32_t p[blocks][4];
#pragma unroll
      for (int b = 0; b < blocks; b++)
        for (int i = 0; i < 4; i++) p[b][i] = Kv::pair(s[b][2 * n + i / 2][i % 2 * 2], s[b][2 * n + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int d = 0; d < columns / 16; d += Kv::steps) {
        uint32_t v[4];
        load_transposed(v, value_row + static_cast<uint32_t>(n) * 16 * Form::stride + static_cast<uint32_t>(d / Kv::steps) * 32);
#pragma unroll
        for (int h = 0; h < Kv::steps; h++) {
          const Operand two = Kv::value_columns(v, h);
#pragma unroll
          for (int b = 0; b < blocks; b++) {
            Kv::multiply_add(o[b][2 * (d + h)], p[b], two.part[0], two.part[1]);
            Kv::multiply_add(o[b][2 * (d + h) + 1], p[b], two.part[2], two.part[3]);
          }
        }
      }
    }
  }

  __device__ __forceinline__ static void score(float (&s)[blocks][Form::positions / 8][4], uint32_t queries, uint32_t keys, int lane) {
    const uint32_t query_row = queries + lane_row<row_bytes<dims>>(lane, false), key_row = keys + lane_row<Form::stride>(lane, true);
#pragma unroll 2 / Kv::steps  // more at once would take more registers than there are
    for (int d = 0; d < dims / 16; d += Kv::steps) {
      uint32_t q[Kv::steps][blocks][4];
#pragma unroll
      for (int h = 0; h < Kv::steps; h++)
        for (int b = 0; b < blocks; b++)
          load_matrices(q[h][b], query_row + static_cast<uint32_t>(b) * 16 * row_bytes<dims> + static_cast<uint32_t>(d + h) * 32);
#pragma unroll
      for (int n = 0; n < Form::positions / 16; n++) {
        uint32_t k[4];
        load_matrices(k, key_row + static_cast<uint32_t>(n) * 16 * Form::stride + static_cast<uint32_t>(d / Kv::steps) * 32);
#pragma unroll
        for (int h = 0; h < Kv::steps; h++) {
          const Operand two = Kv::key_columns(k, h);
#pragma unroll
          for (int b = 0; b < blocks; b++) {
            Kv::multiply_add(s[b][2 * n], q[h][b], two.part[0], two.part[1]);
            Kv::multiply_add(s[b][2 * n + 1], q[h][b], two.part[2], two.part[3]);
          }
        }
      }
    }
  }

  // Of two rows, which are 8 apart; `first` is the first of the lane's positions.
  __device__ __forceinline__ static void mask(float (&s)[Form::positions / 8][4], const int* position, int first, int window) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int from = first_seen(position[h * 8], window) - first, upto = position[h * 8] + 1 - first;
#pragma unroll
      for (int n = 0; n < Form::positions / 8; n++)
        for (int i = 0; i < 2; i++)
          if (n * 8 + i < from || n * 8 + i >= upto) s[n][2 * h + i] = -INFINITY;
    }
  }

  // Scores, times `factor`, become weights, and all sums so far relative to the largest score. A row that has seen nothing yet has weights of 0.
  __device__ __forceinline__ void weigh(float (&s)[Form::positions / 8][4], int b, float factor) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float raised = largest[b][h];
      for (const auto& fragment : s) raised = fmaxf(raised, fmaxf(fragment[2 * h], fragment[2 * h + 1]));
      for (int distance = 1; distance < 4; distance *= 2) raised = fmaxf(raised, __shfl_xor_sync(full_warp, raised, distance));
      const float base = raised == -INFINITY ? 0 : raised * factor, kept = power_of_two(largest[b][h] * factor - base);
      largest[b][h] = raised;
      float sum = 0;
      for (auto& fragment : s)
        for (int i = 2 * h; i < 2 * h + 2; i++) sum += fragment[i] = power_of_two(fragment[i] * factor - base);
      total[b][h] = total[b][h] * kept + sum;
      for (auto& fragment : o[b]) fragment[2 * h] *= kept, fragment[2 * h + 1] *= kept;
    }
  }

  // The answer, or of a divided tile the partial result.
  __device__ __forceinline__ void store(const AttendTask& task, const TileItem& item, int row, int first_column, int lane) {
    const bool is_part = task.step.tile_chunk_tokens > 0;
    const float scale = value_scale<Kv>(task.kv, item.kv_head), to_exponent = exponent_factor(task.shape.soft_cap, key_scale);
#pragma unroll
    for (int b = 0; b < blocks; b++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float sum = total[b][h];
        for (int distance = 1; distance < 4; distance *= 2) sum += __shfl_xor_sync(full_warp, sum, distance);
        const int packed = item.first_row + row + b * 16 + h * 8 + lane / 4;
        if (packed >= item.rows) continue;
        const int token = item.token + packed / task.group, head = item.kv_head * task.group + packed % task.group;
        const float most = largest[b][h] * to_exponent, factor = (is_part ? 1 : answer_factor(most, sum, task.shape.sinks, head)) * scale;
        float* partial = is_part ? partial_of(task, task.step.tokens[token].partial + item.chunk, head) : nullptr;
        if (is_part && first_column == 0 && lane % 4 == 0) *reinterpret_cast<float2*>(partial) = {most, sum};
        __nv_bfloat16* answer = task.out + token * task.out_stride;
#pragma unroll
        for (int n = 0; n < columns / 8; n++) {
          // Of each 16 dimensions, two operands have 8 each, and a lane two neighbours of either; or, in E4M3, the even ones and the odd ones, and a lane four.
          const int i = n % 2, even = n - i, dim = first_column + even * 8 + (Kv::is_scaled ? lane % 4 * 4 + i * 2 : i * 8 + lane % 4 * 2);
          const float low = Kv::is_scaled ? o[b][even][2 * h + i] : o[b][n][2 * h], high = Kv::is_scaled ? o[b][even + 1][2 * h + i] : o[b][n][2 * h + 1];
          if (dim >= task.shape.head_dim) continue;
          if (is_part)
            *reinterpret_cast<float2*>(partial + 2 + dim) = {low * factor, high * factor};
          else
            store_pair(answer, head * task.shape.head_dim + dim, low * factor, high * factor, task.as);
        }
      }
  }
};

template <typename Kv, int dims>
__global__ void __launch_bounds__(TileForm<Kv, dims>::threads, TileForm<Kv, dims>::blocks_min) tiles_kernel(const __grid_constant__ AttendTask task) {
  using Form = TileForm<Kv, dims>;
  __shared__ int position[Form::rows];
  wait_for_previous();
  let_next_begin();  // the step's pieces need what this waited for, and nothing else
  const TileItem item = tile_item<Form::rows>(task, static_cast<int>(blockIdx.x));
  if (item.first_row >= item.rows || item.from >= item.upto) return;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int half = Form::halves == 1 ? 0 : warp / Form::row_warps, row = (warp - half * Form::row_warps) * Form::warp_rows, first_column = half * (dims / Form::halves);
  const uint32_t queries = shared_place(tiles_memory);
  const auto stage = [=](int begin) { return queries + Form::queries_bytes + static_cast<uint32_t>(begin / Form::positions % 2) * Form::stage_bytes; };
  int begin = item.from / Form::positions * Form::positions;
  copy_queries<Kv, dims>(task, item, queries);
  copy_stage<Kv, dims>(task, item, begin, stage(begin));
  end_copies();
  // Rows that there are not stand where the last one does, and warps that have none before all positions.
  for (int i = static_cast<int>(threadIdx.x); i < Form::rows; i += Form::threads) {
    const bool is_idle = item.first_row + i / Form::warp_rows * Form::warp_rows >= item.rows;
    position[i] = is_idle ? -1 : item.position + min(item.first_row + i, item.rows - 1) / task.group;
  }

  RowSums<Kv, dims> mine;
  mine.begin(key_scale<Kv>(task.kv, item.kv_head));
  for (; begin < item.upto; begin += Form::positions) {
    wait_for_copies<0>();
    __syncthreads();  // all threads' copies have come, and all warps have read the other stage
    if (const int next = begin + Form::positions; next < item.upto) copy_stage<Kv, dims>(task, item, next, stage(next));
    end_copies();
    const uint32_t keys = stage(begin);
    mine.add(queries + static_cast<uint32_t>(row) * row_bytes<dims>, keys, keys + Form::half_bytes, first_column, position + row, begin, task.shape, lane);
  }
  mine.store(task, tile_item<Form::rows>(task, static_cast<int>(blockIdx.x)), row, first_column, lane);  // looked up again, not to be kept in registers
}

constexpr int merge_warps = 8;

template <int dims>
__global__ void merge_kernel(const __grid_constant__ AttendTask task) {
  let_next_begin();
  wait_for_previous();
  const auto token = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y * merge_warps + threadIdx.x / 32);
  const StepToken at = task.step.tokens[token];
  if (token >= task.step.counts->tokens || at.partial < 0 || head >= task.shape.heads) return;
  const int chunk_tokens = task.step.tile_chunk_tokens, first = first_seen(at.position, task.shape.window) / chunk_tokens;
  merge_head<dims>(task, token, at.partial + first, at.position / chunk_tokens + 1 - first, head, static_cast<int>(threadIdx.x % 32));
}

template <typename Kv, int dims>
void launch_tiles(cudaStream_t stream, const AttendTask& task) {
  using Form = TileForm<Kv, dims>;
  static const bool is_allowed = [] {
    allow_shared(tiles_kernel<Kv, dims>, Form::shared_bytes);
    check(cudaFuncSetAttribute(tiles_kernel<Kv, dims>, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared), "preferring shared memory");
    return true;
  }();
  static_cast<void>(is_allowed);
  const int items = task.step.tiles_max * task.shape.kv_heads * task.blocks;
  launch(stream, static_cast<unsigned>(items), Form::threads, Form::shared_bytes, tiles_kernel<Kv, dims>, task);
}

template <int dims>
void launch_merge(cudaStream_t stream, const AttendTask& task) {
  const dim3 grid(static_cast<unsigned>(task.step.tokens_max), static_cast<unsigned>((task.shape.heads + merge_warps - 1) / merge_warps));
  launch(stream, grid, 32 * merge_warps, 0, merge_kernel<dims>, task);
}

// By the kernel for such heads.
template <typename Launch>
void launch_for(int head_dim, const Launch& launch) {
  if (head_dim <= 64) return launch(std::integral_constant<int, 64>());
  if (head_dim <= 96) return launch(std::integral_constant<int, 96>());
  if (head_dim <= 128) return launch(std::integral_constant<int, 128>());
  if (head_dim <= 256) return launch(std::integral_constant<int, 256>());
  launch(std::integral_constant<int, 512>());
}

}  // namespace

// Blocks that the queries of a tile and KV head are divided into.
static int blocks_of_head(const AttendShape& shape) {
  const int rows = rows_of(shape.head_dim);
  return (attend_tile_tokens(shape) * (shape.heads / shape.kv_heads) + rows - 1) / rows;
}

// As many as fill a block's rows; of groups so large that few would fit, so many that the last block's empty rows do not matter.
int attend_tile_tokens(const AttendShape& shape) {
  constexpr int tokens_min = 16;
  const int group = shape.heads / shape.kv_heads, rows = rows_of(shape.head_dim);
  return group * 4 <= rows ? rows / group : tokens_min;
}

int attend_tile_blocks(const AttendShape& shape) { return shape.kv_heads * blocks_of_head(shape); }

void attend_tiles(cudaStream_t stream, const StepView& step, const AttendShape& shape, const KvView& kv, const __nv_bfloat16* q, int64_t q_stride,
                  const AttendScratch& scratch, __nv_bfloat16* out, int64_t out_stride, Activations as) {
  if (step.tiles_max == 0) return;
  const AttendTask task{step, shape, runs_of(kv, shape.head_dim), q, q_stride, out, out_stride, as, scratch, shape.heads / shape.kv_heads, blocks_of_head(shape)};
  if (attends_wide(shape, kv.element)) return attend_wide(stream, task);
  launch_for(shape.head_dim, [&](auto dims) { kv.element == KvElement::e4m3 ? launch_tiles<InE4m3, dims>(stream, task) : launch_tiles<InBfloat16, dims>(stream, task); });
}

void merge_tiles(cudaStream_t stream, const StepView& step, const AttendShape& shape, const AttendScratch& scratch, __nv_bfloat16* out, int64_t out_stride, Activations as) {
  if (step.tiles_max == 0 || step.tile_chunk_tokens == 0) return;
  AttendTask task{.step = step, .shape = shape};
  task.out = out;
  task.out_stride = out_stride;
  task.as = as;
  task.scratch = scratch;
  launch_for(shape.head_dim, [&](auto dims) { launch_merge<dims>(stream, task); });
}

}  // namespace millrace
