// y[t][r] = w[r] . x[t] for few tokens: w is read once, at the memory's pace, and there is always a next piece of it on its way.
//
// Grid: one CTA a multiprocessor, which stays for all of its rows; see stream_plan.h for tiles and stages. One thread asks the copy engine
// for stages, up to a ring's worth ahead, and 8 warps sum them. Warp c + 4g has the columns of unit number c, c + 4, ... of its rows, which are
// blocks g and g + 2 of a tile, so that sums stay in registers for a whole tile; the four warps of a group then add theirs in the order of c.
// A CTA takes less than half of a multiprocessor: that of the next matrix is there early, and its ring is filling while this one ends.
// With many tokens two CTAs form a cluster, and each reads half of x for both.
// Bytes: rows * columns * (2, 1 or 5 / 8) of w, from memory; tokens * columns * 2 of x for each tile, from L2; tokens * rows * 4 of y.
// Reference: the sums in double, in test/cuda/matmul_stream.test.cpp.
#include "activate.cuh"
#include "launch.h"
#include "norm_shared.cuh"
#include "reduce.cuh"
#include "stream_plan.h"
#include "stream_sum_q4.cuh"
#include "tile_copy.cuh"

namespace millrace {
namespace {

using Type = DeviceMatrix::Type;

constexpr int classes = 4, groups = 2, summing_warps = classes * groups, group_threads = 32 * classes, stream_threads = 32 * (summing_warps + 1);

template <int T>
constexpr int sum_tiles = stream_sum_tiles(T);
template <int T>
constexpr uint32_t stream_stages_at = stream_stages_offset(T);

struct StreamTask {
  MatmulOutput output;
  const float* scales = nullptr;
  int rows = 0, columns = 0, tokens = 0;
  int block_rows = 0;  // from a block's first row to the next one's
  int half_rows = 0;   // from a block's first row to that of its second half
  float factor = 1;    // of all results
  StreamPlan plan;
};

struct Blocks {
  int first, count;
};
// Those of one of this CTA's tiles.
__device__ Blocks blocks_of(const StreamPlan& plan, int tile) {
  const int cta = static_cast<int>(blockIdx.x), skipped = tile * plan.tile_blocks;
  const int count = plan.cta_blocks + (cta < plan.longer_ctas ? 1 : 0);
  return {cta * plan.cta_blocks + min(cta, plan.longer_ctas) + skipped, max(0, min(plan.tile_blocks, count - skipped))};
}

// Shared memory: for each of the ring's stages a barrier of its arrival and one of its release, the sums that warps exchange, the stages. Tiles
// must begin at multiples of 1 KiB, after which their pattern repeats.
template <int T>
struct Ring {
  static constexpr uint32_t factors_at = stream_barrier_bytes, sums_at = factors_at + stream_factor_bytes, stages_at = stream_stages_at<T>;
  uint32_t begin, stage_bytes;

  __device__ uint32_t stage(int slot) const { return begin + stages_at + static_cast<uint32_t>(slot) * stage_bytes; }
  __device__ uint32_t full(int slot) const { return begin + static_cast<uint32_t>(slot) * 8; }
  __device__ uint32_t empty(int slot) const { return begin + static_cast<uint32_t>(stream_stages_max + slot) * 8; }
};
extern __shared__ __align__(1024) uint8_t shared[];

// A stage of a tile.
struct Stage {
  int tile, step;
  Blocks blocks;
  __device__ Stage(const StreamPlan& plan) : tile(0), step(0), blocks(blocks_of(plan, 0)) {}
  __device__ bool exists(const StreamPlan& plan) const { return tile < plan.tiles; }
  __device__ void advance(const StreamPlan& plan) {
    if (++step < plan.steps) return;
    step = 0;
    if (++tile < plan.tiles) blocks = blocks_of(plan, tile);
  }
};

// The warp that asks for stages. Its threads go through all of this together, so that addresses are uniform, and the first of them asks.
template <Type type, int T>
class Loader {
 public:
  __device__ Loader(const StreamMaps& w, const CUtensorMap& x, const StreamTask& task, const Ring<T>& ring)
      : w_(w), x_(x), task_(task), ring_(ring), next_(task.plan), policy_(evict_first_policy()), asks_(threadIdx.x % 32 == 0) {}

  // Weights never change, so that this needs not wait for who runs before.
  __device__ void begin() {
#pragma unroll 1
    for (; next_.exists(task_.plan) && filled_ < task_.plan.stages; filled_++, next_.advance(task_.plan)) load_weights(filled_);
  }
  __device__ void run() {
    // The ring may hold the beginning of several tiles, and x is the same for each.
#pragma unroll 1
    for (int slot = 0; slot < filled_; slot++) load_tokens(slot, slot % task_.plan.steps);
#pragma unroll 1
    for (Turn turn; next_.exists(task_.plan); turn.advance(task_.plan.stages), next_.advance(task_.plan)) {
      barrier_wait(ring_.empty(turn.slot), turn.parity);
      load_weights(turn.slot);
      load_tokens(turn.slot, next_.step);
    }
  }

 private:
  static constexpr int token_units = stream_token_bytes(type) / stream_unit_bytes, half_tokens_bytes = 4 * T * stream_token_bytes(type);
  static constexpr int half_bytes = stream_half_bytes(type), map_rows = type == Type::q4 ? q4_rows : 1;

  // A stage's rows come in one box where they lie together, or else in two: a copy costs the engine some time, whatever its size.
  __device__ TilePlace place(const Stage& stage, int box) const {
    return {0, stage.step * stream_stage_units, (stage.blocks.first * task_.block_rows + box * task_.half_rows) / map_rows};
  }
  __device__ const CUtensorMap& map(const Stage& stage) const { return w_.by_blocks[stage.blocks.count - 1]; }
  __device__ void load_weights(int slot) {
    if (asks_) barrier_expect(ring_.full(slot), static_cast<uint32_t>(2 * (next_.blocks.count * half_bytes + half_tokens_bytes)));
    if (next_.blocks.count == 0) return;
#pragma unroll 1
    for (int box = 0; box < task_.plan.boxes; box++) {
      const uint32_t to = ring_.stage(slot) + static_cast<uint32_t>(box * next_.blocks.count * half_bytes);
      if (asks_) copy_tile(to, map(next_), place(next_, box), ring_.full(slot), policy_);
    }
  }
  __device__ void load_tokens(int slot, int step) {
    const uint32_t tokens = ring_.stage(slot) + static_cast<uint32_t>(task_.plan.tokens_at);
    if (!asks_) return;
    if (task_.plan.peers == 1) return copy_tile(tokens, x_, {0, step * token_units, 0}, ring_.full(slot));
    const int half = static_cast<int>(cluster_rank());
    copy_tile_to_peers(tokens + static_cast<uint32_t>(half * half_tokens_bytes), x_, {0, step * token_units, half * 4 * T}, ring_.full(slot), 3);
  }
  const StreamMaps& w_;
  const CUtensorMap& x_;
  const StreamTask& task_;
  const Ring<T>& ring_;
  Stage next_;
  uint64_t policy_;
  bool asks_;
  int filled_ = 0;
};

// Sums all stages of a tile, of which `count` blocks are this warp's. A warp has columns in every second stage, but takes note of each, since
// a barrier's phases may not be skipped.
template <Type type, int T, int count>
__device__ void sum_tile(const StreamTask& task, const Ring<T>& ring, const StreamRows<type>& rows, Turn& turn, StreamSums<T>& sums) {
  const int lane_number = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int its_class = warp % classes, group = warp / classes;
  const int unit = its_class % stream_stage_units, team = its_class / stream_stage_units;
  const StreamLane<type> lane(lane_number, unit);
  // Behind an E4M3 row that ends within a unit lies the next one, and behind the last row anything, a NaN too, which is one even times zero.
  // Threads that would meet that take weights of the row's own for the zeros of x.
  const bool is_behind = type == Type::fp8 && task.columns % 256 == unit * 128 + 64 && lane_number % 4 >= 2;
  const int behind_step = is_behind ? task.columns / 256 : -1;
#pragma unroll 1
  for (int step = 0; step < task.plan.steps; step++, turn.advance(task.plan.stages)) {
    barrier_wait(ring.full(turn.slot), turn.parity);
    if (count > 0 && step % 2 == team) {
      const uint32_t weights = ring.stage(turn.slot) + static_cast<uint32_t>(group) * rows.block_bytes;
      const uint32_t tokens = ring.stage(turn.slot) + static_cast<uint32_t>(task.plan.tokens_at);
      StreamLane<type> inside = lane;
      if constexpr (type == Type::fp8) inside.weights ^= step == behind_step ? 64u : 0u;
      if constexpr (count > 0) add_products<count, T>(weights, rows, tokens, sums, inside);
    }
    __syncwarp();
    if (lane_number == 0) {
      barrier_arrive(ring.empty(turn.slot));
      if (task.plan.peers > 1) barrier_arrive_at(ring.empty(turn.slot), cluster_rank() ^ 1);
    }
  }
}

// The factor of each token's norm, once for each group.
__device__ void find_factors(const StreamTask& task) {
  const NormInput& norm = task.output.norm;
  const int thread = static_cast<int>(threadIdx.x) % group_threads, lane = thread % 32;
  float* factors = reinterpret_cast<float*>(shared + stream_barrier_bytes) + static_cast<int>(threadIdx.x) / group_threads * stream_tokens_max;
#pragma unroll 1
  for (int token = thread / 32; token < task.tokens && norm.squares != nullptr; token += classes) {
    float sum = 0;
#pragma unroll 4
    for (int i = lane; i < norm.count; i += 32) sum += norm.squares[token * norm.count + i];
    sum = warp_sum(sum);
    if (lane == 0) factors[token] = rsqrtf(sum / static_cast<float>(norm.n) + norm.epsilon);
  }
}

__device__ float scale_of(const StreamTask& task, int row) { return task.scales == nullptr ? task.factor : task.factor * task.scales[row]; }

// One result of a row and a token, or of a gate row and its up row; returns what `store` and `add` leave.
__device__ float finish(const StreamTask& task, int row, int token, float sum, float up) {
  const MatmulOutput& output = task.output;
  const int64_t line = token * output.stride;
  if (output.norm.squares != nullptr) {
    const float factor = reinterpret_cast<const float*>(shared + stream_barrier_bytes)[static_cast<int>(threadIdx.x) / group_threads * stream_tokens_max + token];
    sum *= factor;
    up *= factor;
  }
  sum = fmaf(sum, scale_of(task, row), output.bias == nullptr ? 0.0f : output.bias[row]);
  if (output.kind == MatmulOutput::Kind::gate) {
    const int up_row = task.half_rows + row;
    up = fmaf(up, scale_of(task, up_row), output.bias == nullptr ? 0.0f : output.bias[up_row]);
    store_value(static_cast<__nv_bfloat16*>(output.y) + line, row, gated(output.activation, sum, up), output.as);
    return 0;
  }
  float* y = static_cast<float*>(output.y) + line + row;
  return *y = output.kind == MatmulOutput::Kind::add ? *y + sum : sum;
}

// Adds up what the four warps of a group have of a block, in their order, and stores it.
template <int T>
__device__ void finish_block(const StreamTask& task, int block, const float (&sums)[T][4]) {
  constexpr int tiles = sum_tiles<T>, row_floats = stream_sum_row_floats, class_floats = tiles * stream_sum_tile_floats;
  const int thread = static_cast<int>(threadIdx.x) % group_threads, group = static_cast<int>(threadIdx.x) / group_threads;
  const int lane = thread % 32, its_class = thread / 32;
  // The numbers are constants, so that a kernel takes three barriers and not all there are.
  const auto sync = [&] {
    if (group == 0)
      asm volatile("bar.sync 1, %0;" ::"n"(group_threads) : "memory");
    else
      asm volatile("bar.sync 2, %0;" ::"n"(group_threads) : "memory");
  };
  // Of the group, [classes][tiles][8 tokens][row_floats].
  float* all = reinterpret_cast<float*>(shared + Ring<T>::sums_at) + group * classes * class_floats;
  const bool is_gate = task.output.kind == MatmulOutput::Kind::gate;
  const int rows = is_gate ? stream_half_rows : stream_block_rows, rows_end = is_gate ? task.half_rows : task.rows;
#pragma unroll
  for (int n = 0; n < T; n += tiles) {
    sync();  // who reads the sums before these has read them
    // A row of the exchange is a token; its length keeps the threads of a warp in different banks.
    float* mine = all + its_class * class_floats + 2 * (lane % 4) * row_floats + lane / 4;
#pragma unroll
    for (int i = 0; i < tiles; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) mine[i * stream_sum_tile_floats + j % 2 * row_floats + j / 2 * 8] = sums[n + i][j];
    sync();
#pragma unroll 1
    for (int item = thread; item < tiles * 8 * rows; item += group_threads) {
      const int token = n * 8 + item / rows, row = block * task.block_rows + item % rows;
      const bool exists = token < task.tokens && row < rows_end;
      const float* from = all + item / rows * row_floats + item % rows;
      const auto total = [&](int i) { return from[i] + from[class_floats + i] + from[2 * class_floats + i] + from[3 * class_floats + i]; };
      const float result = exists ? finish(task, row, token, total(0), is_gate ? total(stream_half_rows) : 0.0f) : 0.0f;
      if (task.output.next.weight != nullptr) leave_for_norm(task.output.next, task.rows, row, token, result, exists);
    }
  }
}

template <Type type, int T>
__device__ void sum_all(const StreamTask& task, const Ring<T>& ring) {
  const int group = static_cast<int>(threadIdx.x) / group_threads;
  Turn turn;
#pragma unroll 1
  for (int tile = 0; tile < task.plan.tiles; tile++) {
    const Blocks blocks = blocks_of(task.plan, tile);
    const int count = (blocks.count - group + 1) / 2;
    const StreamRows<type> rows(task.plan.boxes, blocks.count);
    StreamSums<T> sums = {};
    if (count == 2)
      sum_tile<type, T, 2>(task, ring, rows, turn, sums);
    else if (count == 1)
      sum_tile<type, T, 1>(task, ring, rows, turn, sums);
    else
      sum_tile<type, T, 0>(task, ring, rows, turn, sums);
#pragma unroll
    for (int m = 0; m < 2; m++)
      if (m < count) finish_block<T>(task, blocks.first + group + 2 * m, sums[m]);
  }
}

// A peer's tokens may come only when there are barriers to tell of them.
__device__ void sync_barriers(const StreamTask& task) {
  __syncthreads();
  if (task.plan.peers > 1) cluster_begin();
}

// Two of these, of neighbouring kernels, are to fit a multiprocessor's registers, except where 64 tokens' sums leave no room for a second one.
template <Type type, int T>
__global__ void __launch_bounds__(stream_threads, T < 8 ? 2 : 1)
    stream_kernel(const __grid_constant__ StreamMaps w, const __grid_constant__ CUtensorMap x, const __grid_constant__ StreamTask task) {
  const Ring<T> ring{shared_address(shared), static_cast<uint32_t>(task.plan.stage_bytes)};
  // Whoever comes next fills its own ring while this one is at work.
  let_next_begin();
  if (threadIdx.x / 32 == summing_warps) {
    if (threadIdx.x % 32 == 0) {
      for (const CUtensorMap& map : w.by_blocks) prefetch_map(map);
      prefetch_map(x);
#pragma unroll 1
      for (int slot = 0; slot < task.plan.stages; slot++) {
        barrier_init(ring.full(slot), 1);
        barrier_init(ring.empty(slot), summing_warps * task.plan.peers);
      }
      barriers_ready();
    }
    __syncwarp();
    Loader<type, T> loader(w, x, task, ring);
    loader.begin();
    sync_barriers(task);
    wait_for_previous();
    loader.run();
  } else {
    sync_barriers(task);
    wait_for_previous();
    find_factors(task);
    sum_all<type, T>(task, ring);
  }
  // Barriers must outlive a peer's last arrival.
  if (task.plan.peers > 1) cluster_end();
}

template <Type type, int T>
void launch_stream(cudaStream_t stream, const StreamMaps& w, const CUtensorMap& x, const StreamTask& task) {
  constexpr size_t shared_bytes_max = 227 << 10;
  static const bool is_allowed = (allow_shared(stream_kernel<type, T>, shared_bytes_max), true);
  static_cast<void>(is_allowed);
  launch_clusters(stream, task.plan.peers, static_cast<unsigned>(task.plan.grid), stream_threads, task.plan.shared_bytes, stream_kernel<type, T>, w, x, task);
}

template <Type type>
void launch_stream(cudaStream_t stream, const StreamMaps& w, const CUtensorMap& x, const StreamTask& task) {
  switch (task.plan.token_tiles) {
    case 1:
      return launch_stream<type, 1>(stream, w, x, task);
    case 2:
      return launch_stream<type, 2>(stream, w, x, task);
    case 4:
      return launch_stream<type, 4>(stream, w, x, task);
    default:
      return launch_stream<type, 8>(stream, w, x, task);
  }
}

int count_multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "asking which GPU is used");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "counting multiprocessors");
  return count;
}

}  // namespace

void matmul_stream(cudaStream_t stream, const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const MatmulOutput& output,
                   const StreamTuning& tuning) {
  static const int multiprocessors = count_multiprocessors();
  StreamTask task{.output = output, .rows = w.rows, .columns = w.columns, .tokens = tokens};
  if (w.type == Type::fp8) task.scales = w.scales;
  if (w.type != Type::bf16) task.factor = half_divisor;  // the products are of halves
  task.plan = plan_stream(w, tokens, output.kind, multiprocessors, tuning);
  const bool is_gate = output.kind == MatmulOutput::Kind::gate;
  task.block_rows = is_gate ? stream_half_rows : stream_block_rows;
  task.half_rows = is_gate ? w.rows / 2 : stream_half_rows;
  const StreamMaps w_maps = stream_maps_of_weights(w, task.plan);
  const CUtensorMap x_map = stream_map_of_tokens(w, x, tokens, task.plan);
  if (w.type == Type::bf16)
    launch_stream<Type::bf16>(stream, w_maps, x_map, task);
  else if (w.type == Type::fp8)
    launch_stream<Type::fp8>(stream, w_maps, x_map, task);
  else
    launch_stream<Type::q4>(stream, w_maps, x_map, task);
}

void matmul_stream(cudaStream_t stream, const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const MatmulOutput& output) {
  matmul_stream(stream, w, x, tokens, output, StreamTuning{});
}

}  // namespace millrace
