// Attention between a layer's first two matrices, by the warps that sum in layers.cu. A block takes a chunk of a token's context and a KV head at a time: it
// finishes the queries of that head, and in the last chunk the token's key and value; each warp takes every eighth run of 16 positions, straight from
// memory to registers, those that are older than this step before their queries are there; and what the chunks yield is merged by the block that is done last.
//
// Operands are as in attend_pieces.cu, positions the rows of the first product and dimensions those of the second. Which columns an mma multiplies is
// free as long as keys and queries agree, and so is which row is which dimension: each thread takes 16 bytes that lie together, of keys of its row,
// of values of its four columns.
#pragma once

#include "attend_merge.cuh"
#include "attend_piece_sums.cuh"
#include "heads.cuh"
#include "layers.h"

namespace millrace {

#ifdef __CUDACC__

constexpr int layers_warps = stream_warps, layers_summing_threads = 32 * layers_warps;

// All threads that sum.
__device__ inline void sync_summing() { asm volatile("bar.sync 3, %0;" ::"n"(layers_summing_threads) : "memory"); }

// What warps tell each other of an item, in shared memory.
template <int dims>
struct alignas(16) LayersTold {
  static constexpr int pitch = dims + 8;  // floats from one query's sums to the next one's: threads of a warp meet different banks
  float largest[layers_warps][layers_group_max], total[layers_warps][layers_group_max];
  __nv_bfloat16 queries[layers_group_max][dims];  // stored as keys want it, in order
  bool is_last;

  // Behind it, [layers_warps][group][pitch].
  __device__ float* sums(int warp, int group, int query) { return reinterpret_cast<float*>(this + 1) + (warp * group + query) * pitch; }
};

// A run as registers of a warp: lane 4g + t has keys g and g + 8, of each 64 bytes the 16 that begin at 16t; and values 2t, 2t + 1, 2t + 8 and 2t + 9, of each
// row an eighth.
template <typename Kv, int dims>
struct LayersRun {
  static constexpr int row_bytes = dims * Kv::value_bytes, key_chunks = row_bytes / 64, value_words = row_bytes / 32;
  static constexpr int chunk_products = 4 / Kv::value_bytes;  // mma's of 16 dimensions in 16 bytes of four threads
  uint4 keys[2][key_chunks];
  uint32_t values[4][value_words];

  // Positions that are not seen bring nothing, which keeps what is no number out of sums.
  __device__ __forceinline__ void load_keys(const uint8_t* its_keys, Seen seen, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int c = 0; c < key_chunks; c++) {
        const int row = g + 8 * i;
        keys[i][c] = row >= seen.from && row < seen.upto ? *reinterpret_cast<const uint4*>(its_keys + row * row_bytes + (t + 4 * c) * 16) : uint4{};
      }
  }
  __device__ __forceinline__ void load_values(const uint8_t* its_values, Seen seen, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = 2 * t + i % 2 + i / 2 * 8;
      const bool is_seen = row >= seen.from && row < seen.upto;
      const uint8_t* from = its_values + row * row_bytes;
      if constexpr (value_words == 2) {
        const uint2 words = is_seen ? *reinterpret_cast<const uint2*>(from + 8 * g) : uint2{};
        values[i][0] = words.x, values[i][1] = words.y;
      } else {
#pragma unroll
        for (int c = 0; c < value_words / 4; c++) {
          const uint4 words = is_seen ? *reinterpret_cast<const uint4*>(from + 16 * g + 128 * c) : uint4{};
          values[i][4 * c] = words.x, values[i][4 * c + 1] = words.y, values[i][4 * c + 2] = words.z, values[i][4 * c + 3] = words.w;
        }
      }
    }
  }

  // Where a query's words lie that product number i of the keys meets, in a row of words.
  __device__ static int query_word(int i, int t) { return (t + 4 * (i / chunk_products)) * (2 * chunk_products) + i % chunk_products * 2; }
  __device__ __forceinline__ Operand key_rows(int i) const {
    const uint4 &first = keys[0][i / chunk_products], &second = keys[1][i / chunk_products];
    const auto word = [](const uint4& chunk, int w) { return w == 0 ? chunk.x : w == 1 ? chunk.y : w == 2 ? chunk.z : chunk.w; };
    const int j = i % chunk_products;
    if constexpr (Kv::value_bytes == 2) return {{word(first, 2 * j), word(second, 2 * j), word(first, 2 * j + 1), word(second, 2 * j + 1)}};
    return {{halves_of(word(first, j), 0), halves_of(word(second, j), 0), halves_of(word(first, j), 1), halves_of(word(second, j), 1)}};
  }

  // The two dimensions that row g, and row g + 8, of product number i of the values are: this and the next one.
  __device__ static int dimension(int i, int g) { return value_words == 8 ? i / 4 * 64 + 8 * g + 2 * (i % 4) : dims / 8 * g + 2 * i; }
  __device__ __forceinline__ Operand value_rows(int i) const {
    if constexpr (Kv::value_bytes == 2)
      return {{__byte_perm(values[0][i], values[1][i], 0x5410), __byte_perm(values[0][i], values[1][i], 0x7632), __byte_perm(values[2][i], values[3][i], 0x5410),
               __byte_perm(values[2][i], values[3][i], 0x7632)}};
    const uint32_t order = i % 2 == 0 ? 0x5140 : 0x7362;
    const uint32_t low = __byte_perm(values[0][i / 2], values[1][i / 2], order), high = __byte_perm(values[2][i / 2], values[3][i / 2], order);
    return {{halves_of(low, 0), halves_of(low, 1), halves_of(high, 0), halves_of(high, 1)}};
  }
};

template <typename Kv, int dims>
class LayersAttend {
 public:
  using Run = LayersRun<Kv, dims>;
  using Told = LayersTold<dims>;
  __device__ LayersAttend(const StepView& step, const LayerAttention& task, const TaggedValues& qkv, uint8_t* memory)
      : step_(step), task_(task), qkv_(qkv), told_(*reinterpret_cast<Told*>(memory)), items_(step.counts->pieces * task.attend.shape.kv_heads), index_(static_cast<int>(blockIdx.x)) {}

  // What may be read before this step's queries, keys and values are there: the first run, unless this step's key and value belong to it, and into L2 those that follow.
  __device__ void begin() {
    find();
    if (index_ >= items_ || !has_run(run_)) return;
    if (run_ * run_tokens + run_tokens <= position_) load_keys(run_), load_values(run_), is_loaded_ = true;
#pragma unroll 1
    for (int run = run_ + layers_warps; has_run(run); run += layers_warps) prefetch(run);
  }
  __device__ void run() {
    while (index_ < items_) {
      const PieceItem item = item_;
      finish_heads(item);
      sync_summing();
      begin_sums();
      const bool has_any = has_run(run_);
      if (has_any && !is_loaded_) load_keys(run_), load_values(run_);
#pragma unroll 1
      for (; has_run(run_); run_ += layers_warps) add();
      leave(has_any);
      index_ += static_cast<int>(gridDim.x);
      begin();
      sync_summing();
      finish_item(item);
    }
  }

 private:
  // The item number index_, and the first of its runs that is this warp's.
  __device__ void find() {
    for (; index_ < items_; index_ += static_cast<int>(gridDim.x)) {
      item_ = item_at(step_, task_.attend.shape, 1, index_, layers_group_max);
      position_ = step_.tokens[item_.token].position;
      const int first = item_.from / run_tokens;
      run_ = first + ((warp_ - first) & (layers_warps - 1));
      is_loaded_ = false;
      if (item_.from < item_.upto) return;  // else the window has left the chunk behind
    }
  }
  __device__ bool has_run(int run) const { return run * run_tokens < item_.upto; }
  __device__ Seen seen_of(int run) const { return {item_.from - run * run_tokens, item_.upto - run * run_tokens}; }
  __device__ const uint8_t* place_of(int run) const { return keys_of(task_.attend.kv, item_.slot, item_.kv_head) + offset_of_run(task_.attend.kv, run); }
  __device__ int64_t to_values() const { return task_.attend.kv.view.value_offset - task_.attend.kv.view.key_offset; }
  __device__ __forceinline__ void load_keys(int run) { loaded_.load_keys(place_of(run), seen_of(run), lane_); }
  __device__ __forceinline__ void load_values(int run) { loaded_.load_values(place_of(run) + to_values(), seen_of(run), lane_); }
  __device__ void prefetch(int run) const {
    if (lane_ * 128 >= run_tokens * Run::row_bytes) return;
    for (const uint8_t* from : {place_of(run), place_of(run) + to_values()}) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + lane_ * 128));
  }

  __device__ void finish_heads(const PieceItem& item) {
    const HeadsTask& heads = task_.heads;
    const StepToken token{.position = position_, .slot = item.slot};
    const TaggedValues q = qkv_ + static_cast<int64_t>(item.token) * (heads.heads + 2 * heads.kv_heads) * dims;
    const TaggedValues k = q + static_cast<int64_t>(heads.heads + item.kv_head) * dims;
    const float2* turns = heads.rope.turns + static_cast<int64_t>(item.token) * heads.rope.pairs;
    const int group = task_.attend.group, count = group + (item.upto > position_ ? 2 : 0);
    for (int i = warp_; i < count; i += layers_warps) {
      if (i < group)
        finish_query<Kv::element, true>({&heads.q_norm, 0}, q + static_cast<int64_t>(item.kv_head * group + i) * dims, i, heads, turns, told_.queries[i]);
      else if (i == group)
        keep_head<Kv::element>({&heads.k_norm, 0}, k, item.kv_head, heads, turns, kv_place<Kv::element>(heads.kv, token, item.kv_head, dims, heads.kv.key_offset), heads.kv.key_scales);
      else
        keep_head<Kv::element>({}, k + static_cast<int64_t>(heads.kv_heads) * dims, item.kv_head, heads, nullptr,
                               kv_place<Kv::element>(heads.kv, token, item.kv_head, dims, heads.kv.value_offset), heads.kv.value_scales);
    }
  }

  __device__ __forceinline__ void begin_sums() {
    const int g = lane_ / 4, t = lane_ % 4;
    const bool exists = g < task_.attend.group;
    sums_.key_scale = millrace::key_scale<Kv>(task_.attend.kv, item_.kv_head);
    const auto* words = reinterpret_cast<const uint32_t*>(told_.queries[g]);
#pragma unroll
    for (int i = 0; i < dims / 16; i++) {
      const int word = Run::query_word(i, t);
#pragma unroll
      for (int j = 0; j < 2; j++) sums_.q[i][0][j] = exists ? words[word + j] : 0;
#pragma unroll
      for (float& each : sums_.o[i][0]) each = 0;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) sums_.largest[0][i] = -INFINITY, sums_.total[0][i] = 0;
  }
  // Adds run number run_, which is loaded, and asks for the next one.
  __device__ __forceinline__ void add() {
    const float soft_cap = task_.attend.shape.soft_cap;
    const int next = run_ + layers_warps;
    float s[1][4] = {};
#pragma unroll
    for (int i = 0; i < dims / 16; i++) Kv::multiply_add(s[0], loaded_.key_rows(i).part, sums_.q[i][0][0], sums_.q[i][0][1]);
    if (has_run(next)) load_keys(next);
    cap_scores(s, soft_cap, sums_.key_scale);
    uint32_t p[2];
    sums_.weigh(s[0], 0, seen_of(run_), lane_, exponent_factor(soft_cap, sums_.key_scale), p);
#pragma unroll
    for (int i = 0; i < dims / 16; i++) Kv::multiply_add(sums_.o[i][0], loaded_.value_rows(i).part, p[0], p[1]);
    if (has_run(next)) load_values(next);
  }

  __device__ __forceinline__ void leave(bool has_any) {
    const int g = lane_ / 4, t = lane_ % 4, group = task_.attend.group;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const int query = 2 * t + j;
      float total = sums_.total[0][j];
      for (int distance = 4; distance < 32; distance *= 2) total += __shfl_xor_sync(full_warp, total, distance);
      if (lane_ < 4) told_.largest[warp_][query] = sums_.largest[0][j], told_.total[warp_][query] = total;
      if (!has_any || query >= group) continue;
#pragma unroll
      for (int i = 0; i < dims / 16; i++)
        *reinterpret_cast<float2*>(told_.sums(warp_, group, query) + Run::dimension(i, g)) = make_float2(sums_.o[i][0][j], sums_.o[i][0][2 + j]);
    }
  }

  // Adds up what all warps have left: the piece's partial result, or where it is the token's only one the answer.
  __device__ void finish_item(const PieceItem& item) {
    const AttendTask& attend = task_.attend;
    const int group = attend.group;
    const float scale = value_scale<Kv>(attend.kv, item.kv_head);
    const bool is_answer = item.live == 1;
    for (int pair = static_cast<int>(threadIdx.x); pair < group * (dims / 2); pair += layers_summing_threads) {
      const int query = pair / (dims / 2), dim = pair % (dims / 2) * 2, head = item.kv_head * group + query;
      float most = told_.largest[0][query], total = 0;
      float2 sum = {0, 0};
      for (int w = 1; w < layers_warps; w++) most = fmaxf(most, told_.largest[w][query]);  // finite: some warp saw a position
      for (int w = 0; w < layers_warps; w++) {
        const float factor = power_of_two(told_.largest[w][query] - most);
        if (factor == 0) continue;  // what lies there may be no number
        const float2 part = *reinterpret_cast<const float2*>(told_.sums(w, group, query) + dim);
        total += factor * told_.total[w][query];
        sum.x += factor * part.x, sum.y += factor * part.y;
      }
      if (is_answer) {
        const float whole = scale * answer_factor(most, total, attend.shape.sinks, head);
        store_pair(attend.out + item.token * attend.out_stride, head * dims + dim, sum.x * whole, sum.y * whole, attend.as);
        continue;
      }
      float* partial = partial_of(attend, item.piece, head);
      *reinterpret_cast<float2*>(partial + 2 + dim) = make_float2(sum.x * scale, sum.y * scale);
      if (dim == 0) *reinterpret_cast<float2*>(partial) = make_float2(most, total);
    }
    if (!is_answer) merge(item);
  }
  __device__ void merge(const PieceItem& item) {
    const AttendTask& attend = task_.attend;
    __threadfence();
    sync_summing();
    if (threadIdx.x == 0) {
      int* arrived = attend.scratch.arrived + item.token * attend.shape.kv_heads + item.kv_head;
      told_.is_last = atomicAdd(arrived, 1) == item.live - 1;
      if (told_.is_last) *arrived = 0;
      __threadfence();
    }
    sync_summing();
    if (!told_.is_last) return;
    for (int query = warp_; query < attend.group; query += layers_warps)
      merge_head<dims>(attend, item.token, item.first_live, item.live, item.kv_head * attend.group + query, lane_);
  }

  const StepView& step_;
  const LayerAttention& task_;
  const TaggedValues qkv_;
  Told& told_;
  const int items_, warp_ = static_cast<int>(threadIdx.x) / 32, lane_ = static_cast<int>(threadIdx.x) % 32;
  int index_;
  PieceItem item_ = {};
  int position_ = 0, run_ = 0;
  bool is_loaded_ = false;
  Run loaded_;
  WarpSums<Kv, dims, 1> sums_;
};

#endif

}  // namespace millrace
