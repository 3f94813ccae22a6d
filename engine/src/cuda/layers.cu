// All layers of a step of few tokens; see layers.h. One CTA a multiprocessor: a warp asks the copy engine for weights, as far ahead as the ring has room, whatever
// layer they are of; another for the tokens' values of each stage, once those who write them are done; two find norms' factors; 8 warps sum (stream_warp.cuh), or attend.
//
// CTAs wait for each other by a counter for each phase of each layer: who is done with a phase adds one, when all its results are written. Counters are
// never cleared: all of them have the same value when a launch begins. That all CTAs run at once is taken for granted: there are no more than multiprocessors,
// and what runs before them ends by itself.
// Bytes: the weights, and keys and values, once, from memory; for each tile of a matrix tokens * columns * 2 of x, from L2.
// Reference: the same by matmul_stream, finish_heads and attend_pieces, in test/cuda/layers.test.cpp. Source of the idea: persistent kernels, as in Hazy
// Research's "No bubbles" megakernel (2025).
#include <algorithm>

#include "launch.h"
#include "layers_attend.cuh"
#include "layers_walk.cuh"

namespace millrace {
namespace {

using Type = DeviceMatrix::Type;

// Registers are given away by whole warpgroups: the warps that ask, and those that find factors, are a third one.
constexpr int layers_threads = layers_summing_threads + 128;
// Warps that find norms' factors, and how many tokens' each finds at once.
constexpr int factor_warps = 2, factors_at_once = 4;
constexpr int layers_chains = 2, blocks_at_once = 2;  // of sums; that are finished
constexpr int teams = stream_classes / stream_stage_units;

extern __shared__ __align__(1024) uint8_t shared[];

// The beginning of shared memory; behind it what warps exchange, and the ring.
struct LayersShared {
  uint64_t full[ring_slots], empty[ring_slots], claimed[ring_slots];  // barriers of a stage: that it has come, was read, that its place is free
  uint64_t normed_there, factors_there;  // what a norm's factors are found of, and they
  float factors[layers_tokens_max];
  StreamResult results[2];  // of this matrix and the next one
  LayerAttention attention;
};
constexpr uint32_t exchange_at = (sizeof(LayersShared) + 127) / 128 * 128;
__device__ LayersShared& all_share() { return *reinterpret_cast<LayersShared*>(shared); }

// For the copy engine, before it needs them.
__device__ void prefetch_maps(const LayersMaps& maps) {
  for (const CUtensorMap& map : maps.w.by_blocks) prefetch_map(map);
  prefetch_map(maps.x);
}

// The warp that asks for weights. Its threads go through all of this together, so that addresses are uniform, and the first of them asks.
template <Type type>
__device__ void load_weights(const LayersTask& task) {
  constexpr int half_bytes = stream_half_bytes(type), map_rows = type == Type::q4 ? q4_rows : 1;
  LayersShared& all = all_share();
  const uint32_t ring = shared_address(shared) + task.plan.ring_at;
  const uint64_t policy = evict_first_policy();
  const bool asks = threadIdx.x % 32 == 0;
  StageWalk<type> next(task.plan), last(task.plan);  // last: the oldest one whose place is not known to be free
  int named = 0;                                        // the matrices whose maps were asked for
#pragma unroll 1
  for (; next.exists(); next.advance()) {
    const int soon = min(next.layer * layer_matrices + next.matrix + 2, task.plan.layers * layer_matrices);
    for (; asks && named < soon; named++) prefetch_maps(task.maps[named]);
    for (; next.begin + next.bytes - last.begin > task.plan.ring_bytes || next.index - last.index == ring_slots; last.advance())
      barrier_wait(shared_address(&all.empty[last.turn.slot]), last.turn.parity);
    const LayersPlan::Matrix& matrix = task.plan.matrices[next.matrix];
    const StreamMaps& maps = task.maps[next.layer * layer_matrices + next.matrix].w;
    const uint32_t full = shared_address(&all.full[next.turn.slot]);
    if (!asks) continue;
    barrier_arrive(shared_address(&all.claimed[next.turn.slot]));
    barrier_expect(full, static_cast<uint32_t>(teams * 2 * next.count * half_bytes));
#pragma unroll 1
    for (int i = 0; i < teams * matrix.boxes; i++) {
      const int team = i % teams, box = i / teams;
      const TilePlace place = {0, (teams * next.step + team) * stream_stage_units, (next.block * matrix.block_rows + box * matrix.half_rows) / map_rows};
      copy_tile(ring + next.weights_at(team) + static_cast<uint32_t>(box * next.count * half_bytes), maps.by_blocks[next.count - 1], place, full, policy);
    }
  }
}

// Until all CTAs of this launch are done with a phase.
__device__ void wait_for_phase(const uint32_t* counter, uint32_t whole) {
  uint32_t count;
  do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
  while (static_cast<int32_t>(count - whole) < 0);
  // What they wrote is read by the copy engine too.
  asm volatile("fence.proxy.async;" ::: "memory");
}
// By all threads that sum: what they wrote in a phase is there.
__device__ void end_phase(uint32_t* counter) {
  sync_summing();
  if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

// What all counters count when a launch begins: the last one, to which no CTA adds before all have begun.
__device__ uint32_t counted_before(const LayersTask& task) { return __ldcg(task.counters + task.plan.layers * layer_phases - 1); }

// The warp that waits for phases, and asks for tokens' values.
template <Type type>
__device__ void load_tokens(const LayersTask& task) {
  constexpr int units = stream_token_bytes(type) / stream_unit_bytes;
  LayersShared& all = all_share();
  const uint32_t ring = shared_address(shared) + task.plan.ring_at;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t whole = counted_before(task) + gridDim.x;
  StageWalk<type> next(task.plan);
#pragma unroll 1
  for (int number = 0; number < task.plan.layers * layer_matrices; number++) {
    const int layer = number / layer_matrices, matrix = number % layer_matrices;
    if (!next.is_of(layer, matrix)) continue;
    // The phase in front of it has the number of the matrix before.
    if (lane == 0 && number > 0) wait_for_phase(task.counters + number - 1, whole);
    if (lane == 0 && task.plan.matrices[matrix].norm.squares != nullptr) barrier_arrive(shared_address(&all.normed_there));
    __syncwarp();
    const CUtensorMap& x = task.maps[layer * layer_matrices + matrix].x;
#pragma unroll 1
    for (; next.is_of(layer, matrix); next.advance()) {
      barrier_wait(shared_address(&all.claimed[next.turn.slot]), next.turn.parity);
      if (lane == 0) {
        const uint32_t full = shared_address(&all.full[next.turn.slot]);
        barrier_expect(full, static_cast<uint32_t>(teams * task.plan.tokens * stream_token_bytes(type)));
        for (int team = 0; team < teams; team++) copy_tile(ring + next.tokens_at(team), x, {0, (teams * next.step + team) * units, 0}, full);
      }
    }
  }
}

// The warps that find norms' factors, number `first` of them those of every factor_warps-th token.
__device__ void find_factors(const LayersTask& task, int first) {
  LayersShared& all = all_share();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t turn = 0;
#pragma unroll 1
  for (int number = 0; number < task.plan.layers * layer_matrices; number++) {
    const LayersPlan::Matrix& its = task.plan.matrices[number % layer_matrices];
    const NormInput& norm = its.norm;
    if (norm.squares == nullptr || OwnBlocks(task.plan, its).count == 0) continue;
    barrier_wait(shared_address(&all.normed_there), turn);
    turn ^= 1;
#pragma unroll 1
    for (int begin = first; begin < task.plan.tokens; begin += factor_warps * factors_at_once) {
      float sums[factors_at_once] = {};
#pragma unroll 4
      for (int i = lane; i < norm.count; i += 32)
#pragma unroll
        for (int k = 0; k < factors_at_once; k++)
          if (const int token = begin + factor_warps * k; token < task.plan.tokens) sums[k] += __ldcg(norm.squares + token * norm.count + i);
#pragma unroll
      for (int k = 0; k < factors_at_once; k++) {
        const int token = begin + factor_warps * k;
        const float factor = rsqrtf(warp_sum(sums[k]) / static_cast<float>(norm.n) + norm.epsilon);
        if (lane == 0 && token < task.plan.tokens) all.factors[token] = factor;
      }
    }
    if (lane == 0) barrier_arrive(shared_address(&all.factors_there));
  }
}

// Sums what of a tile's stages is the warp's team's, of which `count` blocks are this warp's.
template <Type type, int T, int count>
__device__ __forceinline__ void sum_tile(StageWalk<type>& next, int steps, uint32_t ring, const StreamWarp<type>& warp, const StreamRows<type>& rows, StreamSums<T> (&sums)[layers_chains], int live) {
  LayersShared& all = all_share();
  const uint32_t bytes = next.bytes, ring_bytes = next.ring_bytes(), weights = ring + next.weights_at(warp.team) - next.at, tokens = ring + next.tokens_at(warp.team) - next.at;
  const bool tells = threadIdx.x % 32 == 0;
  uint32_t at = next.at;
  Turn turn = next.turn;
#pragma unroll 1
  for (int step = 0;; step++) {
    barrier_wait(shared_address(&all.full[turn.slot]), turn.parity);
    warp.template add<count, T, layers_chains>(teams * step + warp.team, weights + at, tokens + at, rows, sums, live);
    __syncwarp();
    if (tells) barrier_arrive(shared_address(&all.empty[turn.slot]));
    if (step + 1 == steps) break;
    turn.advance(ring_slots);
    at = at + 2 * bytes > ring_bytes ? 0 : at + bytes;
  }
  next.end_tile(at, turn);
}

// This CTA's tiles of a matrix. `turn` is the parity of the factors' barrier, `tag` that of results which have one.
template <Type type, int T>
__device__ void multiply(const LayersTask& task, int layer, int matrix, StageWalk<type>& next, uint32_t tag, uint32_t& turn) {
  const LayersPlan::Matrix& its = task.plan.matrices[matrix];
  LayersShared& all = all_share();
  const StreamResult& result = all.results[matrix % 2];
  const uint32_t ring = shared_address(shared) + task.plan.ring_at;
  const StreamWarp<type> warp(its.columns);
  constexpr int group_floats = blocks_at_once * stream_classes * sum_tiles<T> * stream_sum_tile_floats;
  const StreamExchange exchange = {reinterpret_cast<float*>(shared + exchange_at) + warp.group * group_floats, all.factors, tag};
  const int live = task.plan.tokens - static_cast<int>(threadIdx.x) % 32 / 4;
  bool waits = its.norm.squares != nullptr;
#pragma unroll 1
  while (next.is_of(layer, matrix)) {
    const int first = next.block + warp.group, count = (next.count - warp.group + 1) / 2;
    const StreamRows<type> rows(its.boxes, next.count);
    StreamAhead<T> ahead[2];
#pragma unroll
    for (int m = 0; m < 2; m++)
      if (m < count) ahead[m].load_constants(result, first + 2 * m);
    // When a stage has come, who wrote y is done.
    barrier_wait(shared_address(&all.full[next.turn.slot]), next.turn.parity);
#pragma unroll
    for (int m = 0; m < 2; m++)
      if (m < count) ahead[m].load_y(result, first + 2 * m);
    StreamSums<T> sums[layers_chains] = {};
    if (count == 2)
      sum_tile<type, T, 2>(next, its.steps, ring, warp, rows, sums, live);
    else if (count == 1)
      sum_tile<type, T, 1>(next, its.steps, ring, warp, rows, sums, live);
    else
      sum_tile<type, T, 0>(next, its.steps, ring, warp, rows, sums, live);
    if (waits) barrier_wait(shared_address(&all.factors_there), turn), turn ^= 1, waits = false;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int n = 0; n < T; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[0][m][n][i] += sums[1][m][n][i];
    finish_blocks<T, blocks_at_once>(result, exchange, ahead, first, count, sums[0]);
  }
}

// What the phase behind this one is told, on its way to shared memory.
template <typename Told>
__device__ void fetch(Told& to, const Told* from) {
  static_assert(sizeof(Told) % 16 == 0);
  for (uint32_t i = threadIdx.x * 16; i < sizeof(Told); i += layers_summing_threads * 16) copy_or_clear(shared_address(&to) + i, reinterpret_cast<const uint8_t*>(from) + i, true);
  end_copies();
}

// The warps that sum and attend.
template <Type type, int T, typename Kv, int dims>
__device__ void compute(const LayersTask& task) {
  LayersShared& all = all_share();
  StageWalk<type> next(task.plan);
  uint32_t factors_turn = 0, tag = counted_before(task) / gridDim.x * static_cast<uint32_t>(task.plan.layers);
  const auto fetch_result = [&](int number) { fetch(all.results[number % 2], task.results + number); };
  const auto await_fetched = [&] {
    wait_for_copies<0>();
    sync_summing();
  };
  fetch_result(0);
  await_fetched();
#pragma unroll 1
  for (int layer = 0; layer < task.plan.layers; layer++) {
    const int first = layer * layer_matrices;
    tag++;
    fetch(all.attention, task.attentions + layer);
    multiply<type, T>(task, layer, 0, next, tag, factors_turn);
    await_fetched();
    fetch_result(first + 1);
    if (static_cast<int>(blockIdx.x) < task.step.counts->pieces * task.plan.kv_heads) {
      LayersAttend<Kv, dims> attention(task.step, all.attention, {task.tagged, tag}, shared + exchange_at);
      attention.begin();
      attention.run();
    }
    wait_for_copies<0>();
    end_phase(task.counters + layer * layer_phases);
#pragma unroll 1
    for (int matrix = 1; matrix < layer_matrices; matrix++) {
      if (first + matrix + 1 < task.plan.layers * layer_matrices) fetch_result(first + matrix + 1);
      multiply<type, T>(task, layer, matrix, next, tag, factors_turn);
      wait_for_copies<0>();
      end_phase(task.counters + layer * layer_phases + matrix);
    }
  }
}

template <Type type, int T, typename Kv, int dims>
__global__ void __launch_bounds__(layers_threads, 1) layers_kernel(const __grid_constant__ LayersTask task) {
  LayersShared& all = all_share();
  let_next_begin();
  if (threadIdx.x == 0) {
    for (int i = 0; i < ring_slots; i++) {
      barrier_init(shared_address(&all.full[i]), 2);
      barrier_init(shared_address(&all.empty[i]), layers_warps);
      barrier_init(shared_address(&all.claimed[i]), 1);
    }
    barrier_init(shared_address(&all.normed_there), 1);
    barrier_init(shared_address(&all.factors_there), factor_warps);
    barriers_ready();
  }
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < layers_warps) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    wait_for_previous();
    compute<type, T, Kv, dims>(task);
    return;
  }
  asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
  // Weights never change: they need not wait for who runs before.
  if (warp == layers_warps) return load_weights<type>(task);
  wait_for_previous();
  if (warp == layers_warps + 1) return load_tokens<type>(task);
  find_factors(task, warp - layers_warps - 2);
}

template <Type type, int T, typename Kv, int dims>
void launch_layers(cudaStream_t stream, const LayersTask& task) {
  static const bool is_allowed = (allow_shared(layers_kernel<type, T, Kv, dims>, layers_shared_max), true);
  static_cast<void>(is_allowed);
  launch(stream, static_cast<unsigned>(task.plan.grid), layers_threads, task.plan.shared_bytes, layers_kernel<type, T, Kv, dims>, task);
}
template <Type type, int T>
void launch_layers(cudaStream_t stream, const LayersTask& task, KvElement element, int head_dim) {
  if (element == KvElement::e4m3) return head_dim == 64 ? launch_layers<type, T, InE4m3, 64>(stream, task) : launch_layers<type, T, InE4m3, 128>(stream, task);
  return head_dim == 64 ? launch_layers<type, T, InBfloat16, 64>(stream, task) : launch_layers<type, T, InBfloat16, 128>(stream, task);
}
template <Type type>
void launch_layers(cudaStream_t stream, const LayersTask& task, KvElement element, int head_dim) {
  return task.plan.token_tiles == 1 ? launch_layers<type, 1>(stream, task, element, head_dim) : launch_layers<type, 2>(stream, task, element, head_dim);
}

}  // namespace

void run_layers(cudaStream_t stream, const LayersTask& task, DeviceMatrix::Type type, KvElement element, int head_dim) {
  if (type == DeviceMatrix::Type::bf16) return launch_layers<DeviceMatrix::Type::bf16>(stream, task, element, head_dim);
  if (type == DeviceMatrix::Type::fp8) return launch_layers<DeviceMatrix::Type::fp8>(stream, task, element, head_dim);
  launch_layers<DeviceMatrix::Type::q4>(stream, task, element, head_dim);
}

size_t layers_exchange_end(int token_tiles, int group, int head_dim) {
  const size_t products = blocks_at_once * stream_groups * stream_classes * static_cast<size_t>(stream_sum_tiles(token_tiles) * stream_sum_tile_floats) * sizeof(float);
  const size_t told = head_dim == 64 ? sizeof(LayersTold<64>) : sizeof(LayersTold<128>), pitch = head_dim == 64 ? LayersTold<64>::pitch : LayersTold<128>::pitch;
  return exchange_at + std::max(products, told + sizeof(float) * layers_warps * static_cast<size_t>(group) * pitch);
}

}  // namespace millrace
