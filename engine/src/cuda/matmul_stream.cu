// y[t][r] = w[r] . x[t] for few tokens: w is read once, at the memory's pace, and there is always a next piece of it on its way.
//
// Grid: one CTA a multiprocessor, which stays for all of its rows; see stream_plan.h for tiles and stages. One thread asks the copy engine
// for stages, up to a ring's worth ahead, and 8 warps sum them; see stream_warp.cuh.
// A CTA takes less than half of a multiprocessor: that of the next matrix is there early, and its ring is filling while this one ends.
// With many tokens two CTAs form a cluster, and each reads half of x for both.
// Bytes: rows * columns * (2, 1 or 5 / 8) of w, from memory; tokens * columns * 2 of x for each tile, from L2; tokens * rows * 4 of y.
// Reference: the sums in double, in test/cuda/matmul_stream.test.cpp.
#include "launch.h"
#include "stream_warp.cuh"
#include "tile_copy.cuh"

namespace millrace {
namespace {

using Type = DeviceMatrix::Type;

constexpr int stream_threads = 32 * (stream_warps + 1);

template <int T>
constexpr uint32_t stream_stages_at = stream_stages_offset(T);

struct StreamTask {
  StreamResult result;
  int columns = 0;
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
    return {0, stage.step * stream_stage_units, (stage.blocks.first * task_.result.block_rows + box * task_.result.half_rows) / map_rows};
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

// Sums all stages of a tile, of which `count` blocks are this warp's. It takes note of each, whether it has columns there or not, since a barrier's
// phases may not be skipped.
template <Type type, int T, int count>
__device__ void sum_tile(const StreamTask& task, const Ring<T>& ring, const StreamWarp<type>& warp, const StreamRows<type>& rows, Turn& turn, StreamSums<T> (&sums)[1]) {
#pragma unroll 1
  for (int step = 0; step < task.plan.steps; step++, turn.advance(task.plan.stages)) {
    barrier_wait(ring.full(turn.slot), turn.parity);
    if (step % 2 == warp.team) warp.template add<count, T, 1>(step, ring.stage(turn.slot), ring.stage(turn.slot) + static_cast<uint32_t>(task.plan.tokens_at), rows, sums);
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      barrier_arrive(ring.empty(turn.slot));
      if (task.plan.peers > 1) barrier_arrive_at(ring.empty(turn.slot), cluster_rank() ^ 1);
    }
  }
}

// Of this thread's group.
template <int T>
__device__ StreamExchange exchange_of(int group) {
  constexpr int group_floats = stream_classes * sum_tiles<T> * stream_sum_tile_floats;
  return {reinterpret_cast<float*>(shared + Ring<T>::sums_at) + group * group_floats, reinterpret_cast<const float*>(shared + stream_barrier_bytes) + group * stream_tokens_max};
}

// The factor of each token's norm, once for each group.
__device__ void find_factors(const StreamTask& task) {
  const NormInput& norm = task.result.output.norm;
  if (norm.squares == nullptr) return;
  const int thread = static_cast<int>(threadIdx.x) % stream_group_threads, lane = thread % 32;
  float* factors = reinterpret_cast<float*>(shared + stream_barrier_bytes) + static_cast<int>(threadIdx.x) / stream_group_threads * stream_tokens_max;
#pragma unroll 1
  for (int token = thread / 32; token < task.result.tokens; token += stream_classes) {
    const float factor = norm_factor(norm, token, lane);
    if (lane == 0) factors[token] = factor;
  }
}

template <Type type, int T>
__device__ void sum_all(const StreamTask& task, const Ring<T>& ring) {
  const StreamWarp<type> warp(task.columns);
  const StreamExchange exchange = exchange_of<T>(warp.group);
  Turn turn;
#pragma unroll 1
  for (int tile = 0; tile < task.plan.tiles; tile++) {
    const Blocks blocks = blocks_of(task.plan, tile);
    const int count = (blocks.count - warp.group + 1) / 2;
    const StreamRows<type> rows(task.plan.boxes, blocks.count);
    const int first = blocks.first + warp.group;
    StreamAhead<T> ahead[2];
    if constexpr (StreamAhead<T>::is_early) ahead[0].load(task.result, first), ahead[1].load(task.result, first + 2);
    StreamSums<T> sums[1] = {};
    if (count == 2)
      sum_tile<type, T, 2>(task, ring, warp, rows, turn, sums);
    else if (count == 1)
      sum_tile<type, T, 1>(task, ring, warp, rows, turn, sums);
    else
      sum_tile<type, T, 0>(task, ring, warp, rows, turn, sums);
#pragma unroll
    for (int m = 0; m < 2; m++)
      if (m < count) {
        if constexpr (!StreamAhead<T>::is_early) ahead[m].load(task.result, first + 2 * m);
        finish_blocks<T, 1>(task.result, exchange, &ahead[m], first + 2 * m, 1, &sums[0][m]);
      }
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
  if (threadIdx.x / 32 == stream_warps) {
    if (threadIdx.x % 32 == 0) {
      for (const CUtensorMap& map : w.by_blocks) prefetch_map(map);
      prefetch_map(x);
#pragma unroll 1
      for (int slot = 0; slot < task.plan.stages; slot++) {
        barrier_init(ring.full(slot), 1);
        barrier_init(ring.empty(slot), stream_warps * task.plan.peers);
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
  const StreamTask task{stream_result(w, tokens, output), w.columns, plan_stream(w, tokens, output.kind, multiprocessors, tuning)};
  const StreamMaps w_maps = stream_maps_of_weights(w, task.plan);
  const CUtensorMap x_map = stream_map_of_tokens(w, x, tokens, 8 * task.plan.token_tiles / task.plan.peers);
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
