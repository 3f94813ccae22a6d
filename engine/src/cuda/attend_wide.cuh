// What attend_wide.cu is made of: a block's shared memory, who brings tiles there, and what lanes know of their rows.
#pragma once

#include "attend_merge.cuh"
#include "attend_tile.cuh"
#include "store.cuh"
#include "tile_copy.cuh"

namespace millrace {

extern __shared__ __align__(1024) uint8_t attend_memory[];

constexpr int attend_rows = 128, attend_positions = 128, attend_groups = 2, attend_warps = 4 * attend_groups, attend_threads = 128 * (attend_groups + 1), items_ahead = 2;
constexpr int fragments = attend_positions / 8;  // of scores, 8 positions each
constexpr uint32_t line_bytes = 128, eight_lines = 8 * line_bytes;

struct AttendMaps {
  CUtensorMap queries;       // [tokens][heads][head_dim]
  CUtensorMap keys, values;  // [pages of all slots][8 positions, of all heads][halves of head_dim][positions][64 dimensions]
  int slot_pages = 0;
};

// Shared memory: queries, two rings of keys and of values, barriers, items.
template <int dims>
struct AttendMemory {
  static constexpr int halves = dims / 64, stages = dims == 64 ? 4 : 3;
  static constexpr uint32_t half_bytes = attend_rows * line_bytes, step = halves * eight_lines, run_bytes = 2 * step, tile_bytes = attend_positions * halves * line_bytes;
  static constexpr uint32_t barriers_at = halves * half_bytes + 2 * stages * tile_bytes, barrier_count = 4 * stages + 2 + 2 * items_ahead;
  static constexpr uint32_t items_at = barriers_at + 8 * barrier_count;
  static constexpr size_t bytes = items_at + items_ahead * sizeof(TileItem);

  uint32_t begin;

  __device__ AttendMemory() : begin(shared_address(attend_memory)) {}
  __device__ uint32_t queries(int half) const { return begin + static_cast<uint32_t>(half) * half_bytes; }
  __device__ uint32_t tile(bool is_values, int slot) const { return queries(halves) + static_cast<uint32_t>((is_values ? stages : 0) + slot) * tile_bytes; }
  __device__ TileItem& item(int slot) const { return reinterpret_cast<TileItem*>(attend_memory + items_at)[slot]; }

  // Barriers of what has come, and of what is read.
  __device__ uint32_t full(bool is_values, int slot) const { return barrier((is_values ? stages : 0) + slot); }
  __device__ uint32_t empty(bool is_values, int slot) const { return barrier((is_values ? 3 : 2) * stages + slot); }
  __device__ uint32_t queries_full() const { return barrier(4 * stages); }
  __device__ uint32_t queries_empty() const { return barrier(4 * stages + 1); }
  __device__ uint32_t item_full(int slot) const { return barrier(4 * stages + 2 + slot); }
  __device__ uint32_t item_empty(int slot) const { return barrier(4 * stages + 2 + items_ahead + slot); }

  __device__ void init() const {
    for (int slot = 0; slot < stages; slot++)
      for (const bool is_values : {false, true}) barrier_init(full(is_values, slot), 1), barrier_init(empty(is_values, slot), attend_warps);
    barrier_init(queries_full(), 1), barrier_init(queries_empty(), attend_warps);
    for (int slot = 0; slot < items_ahead; slot++) barrier_init(item_full(slot), 1), barrier_init(item_empty(slot), attend_warps + 2);
    barriers_ready();
  }

 private:
  __device__ uint32_t barrier(int number) const { return begin + barriers_at + static_cast<uint32_t>(number) * 8; }
};

// Where an item's blocks of positions begin.
__device__ inline int first_block(const AttendTask& task, const TileItem& item) {
  const int begin = item.chunk * task.step.tile_chunk_tokens;
  return begin + (item.from - begin) / attend_positions * attend_positions;
}

// A block draws a number after each of its items, until it is that of no item: so as many are drawn as there are items, and who draws the last sets the counter back.
__device__ inline int draw_item(const AttendTask& task, int items) {
  const int drawn = atomicAdd(task.scratch.arrived, 1);
  if (drawn == items - 1) *task.scratch.arrived = 0;
  return static_cast<int>(gridDim.x) + drawn;
}

// One thread's. An item is drawn when the one before it has begun, and not earlier: blocks end at nearly the same time.
template <int dims>
__device__ void give_items(const AttendTask& task, const AttendMaps& maps, const AttendMemory<dims>& memory) {
  const int items = task.step.counts->tiles * task.shape.kv_heads;
  const uint32_t lines = attend_rows / task.group * task.group;
  Turn turn, queries;
  for (int index = static_cast<int>(blockIdx.x);; index = draw_item(task, items)) {
    const TileItem item = index < items ? tile_item<attend_rows>(task, index) : TileItem{};
    if (index < items && item.from >= item.upto) continue;
    barrier_wait(memory.item_empty(turn.slot), turn.parity ^ 1);
    memory.item(turn.slot) = item;
    barrier_arrive(memory.item_full(turn.slot));
    turn.advance(items_ahead);
    if (index >= items) return;
    barrier_wait(memory.queries_empty(), queries.parity ^ 1);
    queries.advance(1);
    barrier_expect(memory.queries_full(), AttendMemory<dims>::halves * lines * line_bytes);
    for (int half = 0; half < AttendMemory<dims>::halves; half++)
      copy_tile(memory.queries(half), maps.queries, TilePlace{half * 64, item.kv_head * task.group, item.token}, memory.queries_full());
  }
}

// A run of keys or values: of a page, from this number of 8 positions on, those of all heads counted.
__device__ inline void copy_run_tile(uint32_t to, const CUtensorMap& map, int page, int eights, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %2, %2, %3, %4}], [%5];" ::"r"(to), "l"(&map), "r"(0),
               "r"(eights), "r"(page), "r"(barrier)
               : "memory");
}

// One thread's, of keys or of values.
template <int dims>
__device__ void bring_tiles(const AttendTask& task, const AttendMaps& maps, const AttendMemory<dims>& memory, bool is_values) {
  using Memory = AttendMemory<dims>;
  const CUtensorMap& map = is_values ? maps.values : maps.keys;
  Turn turn;
  for (Turn items;; items.advance(items_ahead)) {
    barrier_wait(memory.item_full(items.slot), items.parity);
    const TileItem item = memory.item(items.slot);
    barrier_arrive(memory.item_empty(items.slot));
    if (item.upto == 0) return;
    for (int begin = first_block(task, item); begin < item.upto; begin += attend_positions, turn.advance(Memory::stages)) {
      const int first = max(begin, item.from) / run_tokens, end = (min(begin + attend_positions, item.upto) + run_tokens - 1) / run_tokens;
      const uint32_t full = memory.full(is_values, turn.slot);
      barrier_wait(memory.empty(is_values, turn.slot), turn.parity ^ 1);
      barrier_expect(full, static_cast<uint32_t>(end - first) * Memory::run_bytes);
#pragma unroll 1
      for (int run = first; run < end; run++) {
        const int page = page_of_run(task.kv, run), eights = 2 * (item.kv_head * task.kv.page_runs + run - page * task.kv.page_runs);
        copy_run_tile(memory.tile(is_values, turn.slot) + static_cast<uint32_t>(run - begin / run_tokens) * Memory::run_bytes, map, item.slot * maps.slot_pages + page, eights, full);
      }
    }
  }
}

// What a lane knows of its two rows, which are 8 apart.
struct LaneRows {
  int row;                 // the first of them
  int from[2], upto[2];    // positions seen
  int all_from, all_upto;  // positions that all rows of the warpgroup see
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {};  // a lane's total is of its own positions

  // Rows that there are not stand where the last one does.
  __device__ LaneRows(const AttendTask& task, const TileItem& item, int group_row, int row) : row(row) {
    const auto position = [&](int packed) { return item.position + min(packed, item.rows - 1) / task.group; };
    const auto from_of = [&](int packed) { return max(first_seen(position(packed), task.shape.window), item.from); };
    const auto upto_of = [&](int packed) { return min(position(packed) + 1, item.upto); };
    for (int h = 0; h < 2; h++) from[h] = from_of(row + 8 * h), upto[h] = upto_of(row + 8 * h);
    all_from = from_of(group_row + 63), all_upto = upto_of(group_row);
  }

  // Scores of the positions from `begin` on become weights, and totals relative to the largest score; sums of values must be multiplied by `kept`. A row that has
  // seen nothing yet has weights of 0.
  __device__ __forceinline__ void weigh(float (&s)[fragments][4], int begin, float soft_cap, int lane, float (&kept)[2]) {
    cap_scores(s, soft_cap, 1);
    if (begin < all_from || begin + attend_positions > all_upto) mask(s, begin + lane % 4 * 2);
    float raised[2] = {largest[0], largest[1]}, base[2], sum[2] = {};
#pragma unroll
    for (int n = 0; n < fragments; n++)
#pragma unroll
      for (int h = 0; h < 2; h++) raised[h] = fmaxf(raised[h], fmaxf(s[n][2 * h], s[n][2 * h + 1]));
#pragma unroll
    for (int h = 0; h < 2; h++) {
      for (int distance = 1; distance < 4; distance *= 2) raised[h] = fmaxf(raised[h], __shfl_xor_sync(full_warp, raised[h], distance));
      base[h] = raised[h] == -INFINITY ? 0 : raised[h] * log2_e;
      kept[h] = power_of_two(largest[h] * log2_e - base[h]);
      largest[h] = raised[h];
    }
#pragma unroll
    for (int n = 0; n < fragments; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) sum[i / 2] += s[n][i] = power_of_two(s[n][i] * log2_e - base[i / 2]);
#pragma unroll
    for (int h = 0; h < 2; h++) total[h] = total[h] * kept[h] + sum[h];
  }

  __device__ __forceinline__ void mask(float (&s)[fragments][4], int first) const {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int before = from[h] - first, behind = upto[h] - first;
#pragma unroll
      for (int n = 0; n < fragments; n++)
        for (int i = 0; i < 2; i++)
          s[n][2 * h + i] = n * 8 + i < before || n * 8 + i >= behind ? -INFINITY : s[n][2 * h + i];
    }
  }

  // The answer, or of a divided tile the partial result.
  template <int dims>
  __device__ __forceinline__ void store(const AttendTask& task, const TileItem& item, const float (&o)[dims / 8][4], int lane) const {
    const bool is_part = task.step.tile_chunk_tokens > 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float sum = total[h];
      for (int distance = 1; distance < 4; distance *= 2) sum += __shfl_xor_sync(full_warp, sum, distance);
      const int packed = row + 8 * h, token = item.token + packed / task.group, head = item.kv_head * task.group + packed % task.group;
      if (packed >= item.rows) continue;
      const float most = largest[h] * log2_e;
      if (is_part) {
        float* partial = partial_of(task, task.step.tokens[token].partial + item.chunk, head);
        if (lane % 4 == 0) *reinterpret_cast<float2*>(partial) = {most, sum};
#pragma unroll
        for (int n = 0; n < dims / 8; n++) *reinterpret_cast<float2*>(partial + 2 + n * 8 + lane % 4 * 2) = {o[n][2 * h], o[n][2 * h + 1]};
      } else {
        const float factor = answer_factor(most, sum, task.shape.sinks, head);
        __nv_bfloat16* answer = task.out + token * task.out_stride;
#pragma unroll
        for (int n = 0; n < dims / 8; n++) store_pair(answer, head * dims + n * 8 + lane % 4 * 2, o[n][2 * h] * factor, o[n][2 * h + 1] * factor, task.as);
      }
    }
  }
};

}  // namespace millrace
