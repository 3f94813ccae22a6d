// Attention of single tokens over contexts cut into chunks. A block takes one chunk, one KV head and up to 16 of its queries at a time; what
// the chunks of a token yield is merged, in their order, by the block that is done last.
//
// Bytes: the context's keys and values once (more than 16 queries of a KV head read them again, from L2), and 2 * heads * (2 + head_dim) * 4 a
// piece where a token has several. That is far more than the arithmetic, so all serves the reading: each warp has a ring of runs of 16
// positions and asks for runs far ahead, of the block's next chunks too, while it merges and writes. Warp w takes the runs whose number is w
// modulo the warps: which warp adds what in which order depends on the token's position alone, and so do a token's bits.
//
// Positions are the rows of both products and queries their columns, S' = K Q' and O' = V' P', since queries are few: 8 or 16 columns are
// wasted less than 16 rows. P' becomes the second product's operand by a transposition of 8 x 8 values within a warp.
// Grid: as many blocks as fit, each taking every gridDim.x-th item (piece, KV head, block of queries). Beside tiles, several times as many: who finds no room at
// first then has less to do.
#include <algorithm>

#include "attend_merge.cuh"
#include "attend_piece_sums.cuh"
#include "store.cuh"

namespace millrace {
namespace {

extern __shared__ __align__(128) uint8_t rings[];

constexpr int blocks_beside_tiles = 4;  // times those that fit

// Of a multiprocessor's shared memory, what rings may take beside 1 KiB of the system's and what warps tell one another, of each block.
constexpr uint32_t rings_bytes_max = 228000;

template <typename Kv, int dims, int tiles>
struct PieceForm {
  static constexpr int warps = dims > 256 ? 2 : 4, threads = 32 * warps, queries = 8 * tiles;
  // As many as registers allow: the arithmetic of E4M3, much for its bytes, wants warps that hide it.
  static constexpr int blocks_min = dims > 128 ? 1 : (dims <= 64 ? 3 : 2) + (Kv::value_bytes == 1 && tiles == 1 ? 1 : 0);
  static constexpr uint32_t stride = row_bytes<dims, Kv::value_bytes>, half_bytes = run_tokens * stride, run_bytes = 2 * half_bytes;  // keys, then values
  // A warp leaves its sums where a run was; or, where that is too small, behind the rings.
  static constexpr uint32_t sums_bytes = tiles * 8 * dims * sizeof(float), room_bytes = sums_bytes <= run_bytes ? 0 : sums_bytes;
  static constexpr int stages = (rings_bytes_max / blocks_min - warps * room_bytes) / (warps * run_bytes);
  static constexpr size_t shared_bytes = size_t{warps} * (stages * run_bytes + room_bytes);
};

// A run's keys, from the first key of its slot's head. A task whose kv is of another type has another of these: the benchmark's, by block tables.
__device__ __forceinline__ const uint8_t* place_of_run(const KvRuns& kv, const uint8_t* keys, int, int run) { return keys + offset_of_run(kv, run); }

// Where a warp is in its runs, over all items that its block takes.
template <int warps>
struct RunCursor {
  int index, warp;
  int run = 0, from = 0, upto = 0, slot = 0;  // the next run, what is seen of its chunk, and whose it is
  const uint8_t* keys = nullptr;    // of the slot's head

  __device__ static int first_run(int from, int warp) {
    const int run = from / run_tokens;
    return run + ((warp - run) & (warps - 1));
  }
  // Goes on to the next item, from `index` on, in which the warp has a run.
  __device__ void find(const auto& task, int items, int block_queries) {
    for (; index < items; index += static_cast<int>(gridDim.x)) {
      const PieceItem item = item_at(task.step, task.shape, task.blocks, index, block_queries);
      from = item.from, upto = item.upto, slot = item.slot, run = first_run(from, warp);
      keys = keys_of(task.kv, item.slot, item.kv_head);
      if (run * run_tokens < upto) return;
    }
  }
  template <typename Kv, int dims>
  __device__ void ask(const auto& task, int items, int block_queries, uint32_t to, int lane) {
    if (index < items) {
      const Seen seen = {from - run * run_tokens, upto - run * run_tokens};
      const uint8_t* place = place_of_run(task.kv, keys, slot, run);
      copy_run<Kv, dims, 32>(to, place, task.shape.head_dim, seen, lane);
      const uint8_t* values = place + (task.kv.view.value_offset - task.kv.view.key_offset);
      copy_run<Kv, dims, 32>(to + run_tokens * row_bytes<dims, Kv::value_bytes>, values, task.shape.head_dim, seen, lane);
      run += warps;
      if (run * run_tokens >= upto) index += static_cast<int>(gridDim.x), find(task, items, block_queries);
    }
    end_copies();  // an empty group too: groups are counted
  }
};

// What the warps of a block tell one another at the end of an item; their sums lie in their rings.
template <typename Kv, int dims, int tiles>
struct Told {
  using Form = PieceForm<Kv, dims, tiles>;
  float largest[Form::warps][8 * tiles], total[Form::warps][8 * tiles];
  uint32_t places[Form::warps];  // of a warp's sums in `rings`: float4 [dims / 16][tiles][lane]
  bool is_last;

  __device__ __forceinline__ void leave(const WarpSums<Kv, dims, tiles>& mine, uint32_t place, int warp, int lane) {
    auto* fragments = reinterpret_cast<float4*>(rings + place);
    __syncwarp();  // the run that was there is read
#pragma unroll
    for (int n = 0; n < tiles; n++) {
#pragma unroll
      for (int d = 0; d < dims / 16; d++) {
        const float(&o)[4] = mine.o[d][n];
        fragments[(d * tiles + n) * 32 + lane] = make_float4(o[0], o[1], o[2], o[3]);
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float sum = mine.total[n][i];
        for (int distance = 4; distance < 32; distance *= 2) sum += __shfl_xor_sync(full_warp, sum, distance);
        if (lane < 4) largest[warp][n * 8 + lane * 2 + i] = mine.largest[n][i], total[warp][n * 8 + lane * 2 + i] = sum;
      }
    }
    if (lane == 0) places[warp] = place;
  }

  // Each warp adds up some dimensions of all warps: into the piece's partial, or where it is the token's only one as the answer.
  __device__ __forceinline__ void combine(const AttendTask& task, const PieceItem& item, int warp, int lane) const {
    const int width = task.shape.head_dim;
    const bool is_answer = item.live == 1;
    const float scale = value_scale<Kv>(task.kv, item.kv_head);
    for (int n = 0; n < tiles; n++) {
      float factors[Form::warps][2], most[2], all[2];
      int heads[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int column = n * 8 + lane % 4 * 2 + i;
        heads[i] = item.first_query + column < task.group ? item.kv_head * task.group + item.first_query + column : -1;
        most[i] = largest[0][column], all[i] = 0;
        for (int w = 1; w < Form::warps; w++) most[i] = fmaxf(most[i], largest[w][column]);  // finite: some warp saw a position
        for (int w = 0; w < Form::warps; w++) {
          factors[w][i] = power_of_two(largest[w][column] - most[i]);
          all[i] += factors[w][i] * total[w][column];
        }
        if (is_answer && heads[i] >= 0) most[i] = answer_factor(most[i], all[i], task.shape.sinks, heads[i]);
      }
      for (int d = warp; d * 16 < width; d += Form::warps) {
        float sum[4] = {};
        for (int w = 0; w < Form::warps; w++) {
          const float4 part = reinterpret_cast<const float4*>(rings + places[w])[(d * tiles + n) * 32 + lane];
          sum[0] += factors[w][0] * part.x, sum[1] += factors[w][1] * part.y, sum[2] += factors[w][0] * part.z, sum[3] += factors[w][1] * part.w;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int head = heads[i % 2], dim = d * 16 + Kv::dimension(lane / 4, i / 2);
          if (head < 0) continue;
          if (is_answer)
            store_value(task.out + item.token * task.out_stride, head * width + dim, sum[i] * scale * most[i % 2], task.as);
          else
            partial_of(task, item.piece, head)[2 + dim] = sum[i] * scale;
        }
      }
      if (is_answer || warp != 0 || lane >= 4) continue;
#pragma unroll
      for (int i = 0; i < 2; i++)
        if (heads[i] >= 0) partial_of(task, item.piece, heads[i])[0] = most[i], partial_of(task, item.piece, heads[i])[1] = all[i];
    }
  }
};

template <typename Kv, int dims, int tiles, typename Task>
__global__ void __launch_bounds__(PieceForm<Kv, dims, tiles>::threads, PieceForm<Kv, dims, tiles>::blocks_min) pieces_kernel(const __grid_constant__ Task task) {
  using Form = PieceForm<Kv, dims, tiles>;
  __shared__ Told<Kv, dims, tiles> told;
  // Tiles in front of it need not be done: they began when the queries, keys and values were there. What this multiprocessor remembers of those may be older.
  const bool is_beside_tiles = task.step.tiles_max > 0;
  let_next_begin();
  if (is_beside_tiles)
    __threadfence();
  else
    wait_for_previous();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int items = task.step.counts->pieces * task.shape.kv_heads * task.blocks;
  const uint32_t ring = static_cast<uint32_t>(warp * Form::stages) * Form::run_bytes, memory = shared_place(rings) + ring;

  RunCursor<Form::warps> ahead = {static_cast<int>(blockIdx.x), warp};
  ahead.find(task, items, Form::queries);
#pragma unroll 1
  for (int i = 0; i < Form::stages - 1; i++)
    ahead.template ask<Kv, dims>(task, items, Form::queries, memory + static_cast<uint32_t>(i) * Form::run_bytes, lane);

  int place = 0, free = Form::stages - 1;  // in the ring: of the next run, and the one in front of it, which nobody needs
  for (int index = static_cast<int>(blockIdx.x); index < items; index += static_cast<int>(gridDim.x)) {
    const PieceItem item = item_at(task.step, task.shape, task.blocks, index, Form::queries);
    if (item.from >= item.upto) continue;  // the window has left the chunk behind
    WarpSums<Kv, dims, tiles> mine;
    mine.begin(task, item, lane);
    for (int run = RunCursor<Form::warps>::first_run(item.from, warp); run * run_tokens < item.upto; run += Form::warps) {
      wait_for_copies<Form::stages - 2>();
      __syncwarp();  // all lanes' copies have come, and all lanes have read the run before
      ahead.template ask<Kv, dims>(task, items, Form::queries, memory + static_cast<uint32_t>(free) * Form::run_bytes, lane);
      const uint32_t keys = memory + static_cast<uint32_t>(place) * Form::run_bytes;
      mine.add(keys, keys + Form::half_bytes, {item.from - run * run_tokens, item.upto - run * run_tokens}, task.shape.soft_cap, lane);
      free = place;
      place = place + 1 == Form::stages ? 0 : place + 1;
    }
    constexpr uint32_t rooms = Form::warps * Form::stages * Form::run_bytes;
    told.leave(mine, Form::room_bytes > 0 ? rooms + static_cast<uint32_t>(warp) * Form::room_bytes : ring + static_cast<uint32_t>(free) * Form::run_bytes, warp, lane);
    __syncthreads();
    told.combine(task, item, warp, lane);
    if (item.live > 1) __threadfence();
    __syncthreads();  // what was left is read, and the partial written
    if (item.live == 1) continue;
    if (threadIdx.x == 0) {
      int* arrived = task.scratch.arrived + item.token * task.shape.kv_heads + item.kv_head;
      told.is_last = atomicAdd(arrived, 1) == item.live * task.blocks - 1;
      if (told.is_last) *arrived = 0;
      __threadfence();
    }
    __syncthreads();
    if (!told.is_last) continue;
    for (int query = warp; query < task.group; query += Form::warps) merge_head<dims>(task, item.token, item.first_live, item.live, item.kv_head * task.group + query, lane);
  }
  wait_for_copies<0>();
  if (is_beside_tiles) wait_for_previous();  // whoever comes next takes the tiles for done when this is
}

template <typename Kv, int dims, int tiles, typename Task>
void launch_pieces(cudaStream_t stream, Task task) {
  using Form = PieceForm<Kv, dims, tiles>;
  static const int resident_blocks = [] {
    const auto kernel = pieces_kernel<Kv, dims, tiles, Task>;
    int device = 0, multiprocessors = 0, blocks = 0;
    allow_shared(kernel, Form::shared_bytes);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared), "preferring shared memory");
    check(cudaGetDevice(&device), "looking for the device");
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "counting multiprocessors");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, Form::threads, Form::shared_bytes), "counting blocks");
    return multiprocessors * std::max(1, blocks);
  }();
  task.blocks = (task.group + Form::queries - 1) / Form::queries;
  const int items = task.step.pieces_max * task.shape.kv_heads * task.blocks, most = resident_blocks * (task.step.tiles_max > 0 ? blocks_beside_tiles : 1);
  launch(stream, static_cast<unsigned>(std::min(items, most)), Form::threads, Form::shared_bytes, pieces_kernel<Kv, dims, tiles, Task>, task);
}

template <typename Kv>
void launch_pieces(cudaStream_t stream, const auto& task) {
  const bool has_few = task.group <= 8;
  const int head_dim = task.shape.head_dim;
  if (head_dim <= 64) return has_few ? launch_pieces<Kv, 64, 1>(stream, task) : launch_pieces<Kv, 64, 2>(stream, task);
  if (head_dim <= 128) return has_few ? launch_pieces<Kv, 128, 1>(stream, task) : launch_pieces<Kv, 128, 2>(stream, task);
  if (head_dim <= 256) return launch_pieces<Kv, 256, 1>(stream, task);  // 16 queries would not fit into the registers
  launch_pieces<Kv, 512, 1>(stream, task);
}

}  // namespace

void attend_pieces(cudaStream_t stream, const StepView& step, const AttendShape& shape, const KvView& kv, const __nv_bfloat16* q, int64_t q_stride,
                   const AttendScratch& scratch, __nv_bfloat16* out, int64_t out_stride, Activations as) {
  if (step.pieces_max == 0) return;
  const AttendTask task{step, shape, runs_of(kv, shape.head_dim), q, q_stride, out, out_stride, as, scratch, shape.heads / shape.kv_heads, 1};
  if (kv.element == KvElement::e4m3) return launch_pieces<InE4m3>(stream, task);
  launch_pieces<InBfloat16>(stream, task);
}

}  // namespace millrace
