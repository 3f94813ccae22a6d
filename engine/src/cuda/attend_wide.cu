// Attention of many tokens of one row, for keys and values in bfloat16 and head_dim 64 or 128: FlashAttention-3 on Hopper's warpgroup products. A block takes up to
// 128 queries that read the same KV head, packed as (token, head of the group), and goes over keys and values 128 positions at a time, in their order: those begin
// at multiples of 128, or of a divided context where its chunk does, so that a token's bits do not depend on who else is in its tile.
//
// Two warpgroups have 64 rows each. While the products of one run, of its queries with 128 keys and of its weights with the values in front of these, the other one
// makes weights of scores; they take turns. Weights never leave the registers. Beside them, one thread draws items, later tiles first, since these read most, and
// brings their queries; one brings keys and one values, ahead by as much as the rings hold, of the next item too.
// A run of 16 positions is one copy. What it leaves is 8 positions after 8, of each 64 dimensions and then the others, in lines of 128 bytes, as products take keys by
// lines and values across them. Nothing is read of runs that no row sees. Values of single positions that none sees may be no numbers: warpgroups clear them.
// Grid: one block a multiprocessor, which stays for several items (tile, KV head).
// Flops: 4 * head_dim for each query and position seen. Bytes: q and out once, keys and values once an item, mostly from L2.
#include <algorithm>

#include "attend_wide.cuh"
#include "tensor_map.h"
#include "wgmma.cuh"

namespace millrace {
namespace {

// One of the warpgroups that multiply. What waits for products waits for them alone, and products wait for their turn.
template <int dims>
class AttendGroup {
 public:
  __device__ AttendGroup(const AttendTask& task, const AttendMemory<dims>& memory, int group)
      : task_(task), memory_(memory), group_(group), thread_(static_cast<int>(threadIdx.x) % 128), lane_(thread_ % 32) {}

  __device__ void run() {
    if (group_ == 1) give_turn();
    Turn items;
    for (uint32_t queries_parity = 0;; items.advance(items_ahead), queries_parity ^= 1) {
      barrier_wait(memory_.item_full(items.slot), items.parity);
      const TileItem item = memory_.item(items.slot);
      release(memory_.item_empty(items.slot));
      if (item.upto == 0) break;
      barrier_wait(memory_.queries_full(), queries_parity);
      attend(item);
    }
    if (group_ == 0) take_turn();  // which was given at the end
  }

 private:
  using Memory = AttendMemory<dims>;
  static constexpr int runs = attend_positions / run_tokens;

  __device__ __forceinline__ void attend(const TileItem& item) {
    float s[fragments][4], o[dims / 8][4], kept[2];
    uint32_t p[runs][4];
    const int begin = first_block(task_, item);
    LaneRows rows(task_, item, group_ * 64, group_ * 64 + thread_ / 32 * 16 + lane_ / 4);
    barrier_wait(memory_.full(false, turn_.slot), turn_.parity);
    mma_begin();
    score(s);
    mma_wait<0>();
    take_scores(s, begin + attend_positions >= item.upto);
    rows.weigh(s, begin, task_.shape.soft_cap, lane_, kept);
    wait_for_values(item, begin, turn_);
    pack(p, s);
    bool adds = false;
#pragma unroll 1
    for (int next = begin + attend_positions; next < item.upto; next += attend_positions, adds = true) {
      const Turn before = turn_;
      turn_.advance(Memory::stages);
      barrier_wait(memory_.full(false, turn_.slot), turn_.parity);
      take_turn();
      mma_begin();
      score(s);
      add_values(o, p, before.slot, adds);
      give_turn();
      mma_wait<1>();
      take_scores(s, next + attend_positions >= item.upto);
      rows.weigh(s, next, task_.shape.soft_cap, lane_, kept);
      mma_settled(s);
      wait_for_values(item, next, turn_);  // stands here for its loop, too: without one the compiler makes weights behind the wait, when nothing runs beside
      mma_wait<0>();
      mma_settled(o);
      release(memory_.empty(true, before.slot));
      scale(o, kept);
      pack(p, s);
    }
    mma_begin();
    add_values(o, p, turn_.slot, adds);
    mma_wait<0>();
    mma_settled(o);
    release(memory_.empty(true, turn_.slot));
    turn_.advance(Memory::stages);
    rows.template store<dims>(task_, item, o, lane_);
  }

  // What all of a row's sums are multiplied by.
  __device__ __forceinline__ static void scale(float (&o)[dims / 8][4], const float (&factors)[2]) {
#pragma unroll
    for (int n = 0; n < dims / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) o[n][i] *= factors[i / 2];
  }
  __device__ __forceinline__ void score(float (&s)[fragments][4]) {
    const uint64_t queries = mma_tile(memory_.queries(0) + static_cast<uint32_t>(group_) * 64 * line_bytes, eight_lines);
    const uint64_t keys = mma_tile(memory_.tile(false, turn_.slot), Memory::step);
#pragma unroll
    for (int d = 0; d < dims / 16; d++) multiply_rows(s, queries + d / 4 * (Memory::half_bytes / 16) + d % 4 * 2, keys + d / 4 * (eight_lines / 16) + d % 4 * 2, d > 0);
    mma_commit();
  }
  __device__ __forceinline__ void add_values(float (&o)[dims / 8][4], const uint32_t (&p)[runs][4], int slot, bool adds) {
    const uint64_t values = mma_tile(memory_.tile(true, slot), Memory::step, eight_lines);
#pragma unroll
    for (int n = 0; n < runs; n++) multiply_across(o, p[n], values + n * (Memory::run_bytes / 16), adds || n > 0);
    mma_commit();
  }
  __device__ __forceinline__ void take_scores(float (&s)[fragments][4], bool are_last) {
    mma_settled(s);
    release(memory_.empty(false, turn_.slot));
    if (are_last) release(memory_.queries_empty());
  }
  __device__ __forceinline__ static void pack(uint32_t (&p)[runs][4], const float (&s)[fragments][4]) {
#pragma unroll
    for (int n = 0; n < runs; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) p[n][i] = InBfloat16::pair(s[2 * n + i / 2][i % 2 * 2], s[2 * n + i / 2][i % 2 * 2 + 1]);
  }

  // Both warpgroups clear all positions that nobody sees, so that neither waits for the other; each thread has a position.
  __device__ __forceinline__ void wait_for_values(const TileItem& item, int begin, const Turn& turn) {
    barrier_wait(memory_.full(true, turn.slot), turn.parity);
    if (begin >= item.from && begin + attend_positions <= item.upto) return;
    const int position = begin + thread_;
    const uint32_t line = memory_.tile(true, turn.slot) + static_cast<uint32_t>(thread_ / 8) * Memory::step + static_cast<uint32_t>(thread_ % 8) * line_bytes;
    if (position < item.from || position >= item.upto)
      for (int i = 0; i < 8 * Memory::halves; i++)  // lanes begin at different banks
        copy_or_clear(line + static_cast<uint32_t>(i / 8) * eight_lines + static_cast<uint32_t>((i + lane_) % 8) * 16, nullptr, false);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync %0, 128;" ::"r"(1 + group_) : "memory");
  }

  __device__ __forceinline__ void release(uint32_t barrier) {
    __syncwarp();
    if (lane_ == 0) barrier_arrive(barrier);
  }
  __device__ __forceinline__ void take_turn() { asm volatile("bar.sync %0, %1;" ::"r"(1 + attend_groups + group_), "n"(128 * attend_groups) : "memory"); }
  __device__ __forceinline__ void give_turn() { asm volatile("bar.arrive %0, %1;" ::"r"(1 + attend_groups + (group_ ^ 1)), "n"(128 * attend_groups) : "memory"); }

  const AttendTask& task_;
  const AttendMemory<dims> memory_;
  const int group_, thread_, lane_;
  Turn turn_;  // of the block of positions in hand
};

template <int dims>
__global__ void __launch_bounds__(attend_threads, 1) attend_wide_kernel(const __grid_constant__ AttendTask task, const __grid_constant__ AttendMaps maps) {
  const AttendMemory<dims> memory;
  if (threadIdx.x == 0) {
    prefetch_map(maps.queries), prefetch_map(maps.keys), prefetch_map(maps.values);
    memory.init();
  }
  __syncthreads();
  wait_for_previous();
  let_next_begin();  // as in attend_tiles.cu
  const int warp = __shfl_sync(full_warp, static_cast<int>(threadIdx.x) / 32, 0);
  if (warp < attend_warps) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    AttendGroup<dims>(task, memory, warp / 4).run();
    return;
  }
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
  if (threadIdx.x % 32 != 0) return;
  if (warp == attend_warps) give_items<dims>(task, maps, memory);
  if (warp == attend_warps + 1) bring_tiles<dims>(task, maps, memory, false);
  if (warp == attend_warps + 2) bring_tiles<dims>(task, maps, memory, true);
}

CUtensorMap map_of_queries(const AttendTask& task) {
  const auto dims = static_cast<uint64_t>(task.shape.head_dim), group = static_cast<uint64_t>(task.group);
  return map_of(task.q, {.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                         .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                         .rank = 3,
                         .dimensions = {dims, static_cast<uint64_t>(task.shape.heads), static_cast<uint64_t>(task.step.tokens_max)},
                         .strides = {dims * 2, static_cast<uint64_t>(task.q_stride) * 2},
                         .box = {64, static_cast<uint32_t>(group), static_cast<uint32_t>(attend_rows / group)}});
}
CUtensorMap map_of_positions(const AttendTask& task, int64_t offset) {
  constexpr uint64_t pages_max = uint64_t{1} << 28;  // more than there are: only what is mapped is asked for
  const auto dims = static_cast<uint64_t>(task.shape.head_dim), eights = static_cast<uint64_t>(task.shape.kv_heads * task.kv.page_runs * 2);
  return map_of(task.kv.view.base + offset, {.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                             .promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                             .rank = 5,
                                             .dimensions = {64, 8, dims / 64, eights, pages_max},
                                             .strides = {dims * 2, line_bytes, 8 * dims * 2, static_cast<uint64_t>(task.kv.view.page_bytes)},
                                             .box = {64, 8, static_cast<uint32_t>(dims / 64), 2, 1}});
}

template <int dims>
void launch_attend_wide(cudaStream_t stream, const AttendTask& task, const AttendMaps& maps) {
  static const int multiprocessors = [] {
    int device = 0, count = 0;
    allow_shared(attend_wide_kernel<dims>, AttendMemory<dims>::bytes);
    check(cudaGetDevice(&device), "looking for the device");
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "counting multiprocessors");
    return count;
  }();
  const int items = task.step.tiles_max * task.shape.kv_heads;
  launch(stream, static_cast<unsigned>(std::min(items, multiprocessors)), attend_threads, AttendMemory<dims>::bytes, attend_wide_kernel<dims>, task, maps);
}

}  // namespace

bool attends_wide(const AttendShape& shape, KvElement element) {
  return element == KvElement::bfloat16 && (shape.head_dim == 64 || shape.head_dim == 128) && attend_tile_blocks(shape) == shape.kv_heads;
}

void attend_wide(cudaStream_t stream, const AttendTask& task) {
  const KvView& kv = task.kv.view;
  if (kv.slot_bytes % kv.page_bytes != 0) throw CudaError("slots of keys and values are no multiple of their pages");
  const AttendMaps maps{map_of_queries(task), map_of_positions(task, kv.key_offset), map_of_positions(task, kv.value_offset), static_cast<int>(kv.slot_bytes / kv.page_bytes)};
  if (task.shape.head_dim == 64) return launch_attend_wide<64>(stream, task, maps);
  launch_attend_wide<128>(stream, task, maps);
}

}  // namespace millrace
