// Attention on a GPU as a step of an 8B Llama has it (32 heads over 8, head_dim 128), layer after layer in one graph: single tokens at the end
// of contexts, in GB/s of keys and values, and prompts, in TFLOP/s of what is seen. Once with pages of 16 tokens of all layers (2 MiB), once with
// pages of 1024, where a head's keys lie together for 256 KiB; and all of it in bfloat16 and in E4M3. Then prompts as a 1B Llama has them, with head_dim 64.
//
//     bench_cuda_attend [chunk tokens, 512 unless told]
//     bench_cuda_attend CHUNK table      single tokens by the same kernel through tables of blocks of 16 tokens, which lie in random places, and what
//                                        memory both waste; ends with 1 where it answers otherwise than through pages
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "attend_table.h"
#include "cuda/kernels.h"
#include "cuda/memory.h"
#include "graph_time.h"
#include "kv/layout.h"

using namespace millrace;

namespace {

constexpr AttendShape shape_8b{.heads = 32, .kv_heads = 8, .head_dim = 128}, shape_1b{.heads = 32, .kv_heads = 8, .head_dim = 64};
constexpr int layers = 32, replays = 11, tokens_max = 8192, page_sizes[] = {16, 1024};
constexpr size_t kv_bytes_max = size_t{48} << 30, spare_bytes = size_t{6} << 30, l2_bytes = size_t{256} << 20;

template <typename Value>
DeviceArray<Value> upload(const std::vector<Value>& values) {
  DeviceArray<Value> array(values.size());
  if (!values.empty()) check(cudaMemcpy(array.get(), values.data(), array.bytes(), cudaMemcpyHostToDevice), "copying to the device");
  return array;
}

// Moderate numbers of either sign, in bfloat16 and float16; in E4M3 too: no byte is a NaN.
void fill(void* memory, size_t bytes) {
  std::vector<uint16_t> block(std::min(bytes, size_t{32} << 20) / 2);
  uint64_t state = 1;
  for (uint16_t& value : block) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<uint16_t>((state >> 40 & 0x81bf) | 0x3c00);
  }
  auto* to = static_cast<uint8_t*>(memory);
  for (size_t at = 0; at < bytes; at += block.size() * 2)
    check(cudaMemcpy(to + at, block.data(), std::min(bytes - at, block.size() * 2), cudaMemcpyDefault), "filling");
}

// Rows of a step: each has `count` tokens at the end of `context` positions.
struct Work {
  int rows, context, count;
  int divided = 0;  // tiles' chunks, in tokens
};

// Blocks of 16 tokens by a table: of all layers as pages are, one behind another or in random places; or in random places of each layer's own pool.
enum class Blocks { none, in_order, of_all_layers, of_each_layer };

class Bench {
 public:
  Bench(const AttendShape& shape, int chunk_tokens) : shape_(shape), chunk_tokens_(chunk_tokens), q_(static_cast<size_t>(tokens_max * width())), out_(q_.count()), flushed_(l2_bytes) {
    size_t free_bytes = 0, total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for free memory");
    if (free_bytes < 2 * spare_bytes) throw CudaError("this bench takes a GPU with 12 GiB of free memory or more");
    kv_bytes_ = std::min(kv_bytes_max, free_bytes - spare_bytes) >> 28 << 28;
    void* memory = nullptr;
    check(cudaMalloc(&memory, kv_bytes_), "allocating keys and values");
    kv_.reset(static_cast<uint8_t*>(memory));
    fill(memory, kv_bytes_);
    fill(q_.get(), q_.bytes());
    check(cudaStreamCreate(&stream_), "creating a stream");
  }

  void decode(KvElement element, const Work& work, int page_tokens) {
    const double seconds = time(element, work, page_tokens);
    const double bytes = static_cast<double>(work.rows) * work.context * static_cast<double>(position_bytes(element));
    std::printf("%s decode  %4d rows of %5d, pages of %4d, %5d slots %9.2f us %8.0f GB/s\n", name_of(element), work.rows, work.context, page_tokens, slots_, seconds * 1e6, bytes / seconds * 1e-9);
  }
  void decode_both_ways(KvElement element, const Work& work) {
    const double pages = time(element, work, tile_tokens), all = time(element, work, tile_tokens, Blocks::of_all_layers), each = time(element, work, tile_tokens, Blocks::of_each_layer);
    std::printf("%s decode  %4d rows of %5d: pages of 16 tokens %9.2f us, blocks by a table %9.2f us (%+.1f%%), in a pool for each layer %9.2f us (%+.1f%%)\n", name_of(element),
                work.rows, work.context, pages * 1e6, all * 1e6, 100 * (all / pages - 1), each * 1e6, 100 * (each / pages - 1));
  }
  // Blocks that lie as pages do have the same keys and values.
  bool answers_alike(KvElement element, const Work& work) {
    std::vector<uint16_t> answers[2];
    for (const Blocks blocks : {Blocks::none, Blocks::in_order}) {
      check(cudaMemset(out_.get(), 0xff, out_.bytes()), "clearing answers");
      time(element, work, tile_tokens, blocks);
      std::vector<uint16_t>& answer = answers[blocks == Blocks::none ? 0 : 1];
      answer.resize(static_cast<size_t>(work.rows) * static_cast<size_t>(width()));
      check(cudaMemcpy(answer.data(), out_.get(), answer.size() * sizeof(uint16_t), cudaMemcpyDeviceToHost), "reading answers");
    }
    return answers[0] == answers[1];
  }
  void prefills(KvElement element, int page_tokens) {
    for (const int tokens : {512, 1024, 4096, 8192}) prefill(element, {1, tokens, tokens}, page_tokens);
    prefill(element, {64, 128, 128}, page_tokens);
    prefill(element, {1, 8192, 512}, page_tokens);
    for (const int divided : {0, 256, 512, 1024}) prefill(element, {1, 4096, 128, divided}, page_tokens);
  }

 private:
  void prefill(KvElement element, const Work& work, int page_tokens) {
    const double seconds = time(element, work, page_tokens);
    double seen = 0;
    for (int i = 0; i < work.count; i++) seen += work.context - i;
    const double flops = 4.0 * width() * seen * work.rows;
    std::printf("%s prefill %4d rows of %5d of %5d, chunks of %4d, pages of %4d %9.2f us %8.1f TFLOP/s\n", name_of(element), work.rows, work.count, work.context, 
                work.divided > 0 ? work.divided : work.context, page_tokens, seconds * 1e6, flops / seconds * 1e-12);
  }
  static const char* name_of(KvElement element) { return element == KvElement::e4m3 ? "e4m3" : "bf16"; }

  int width() const { return shape_.heads * shape_.head_dim; }
  // Of one layer's keys and values.
  int64_t position_bytes(KvElement element) const { return 2 * shape_.kv_heads * tile_bytes_of(element, shape_.head_dim) / tile_tokens; }
  KvView view(KvElement element, int layer, int page_tokens, int context) const {
    KvView kv{.base = kv_.get(), .page_tokens = page_tokens, .element = element};
    kv.head_bytes = page_tokens / tile_tokens * tile_bytes_of(element, shape_.head_dim);
    kv.page_bytes = page_tokens * position_bytes(element) * layers;
    kv.key_offset = page_tokens * position_bytes(element) * layer;
    kv.value_offset = kv.key_offset + shape_.kv_heads * kv.head_bytes;
    kv.slot_bytes = (context + page_tokens - 1) / page_tokens * kv.page_bytes;
    if (element == KvElement::e4m3) kv.key_scales = kv.value_scales = scales_.get();
    return kv;
  }

  KvView table_view(KvElement element, int layer, int context, Blocks blocks) const {
    KvView kv = view(element, layer, tile_tokens, context);
    const int64_t slot_blocks = kv.slot_bytes / kv.page_bytes, offset = kv.value_offset - kv.key_offset;
    kv.slot_bytes = 0;
    if (blocks != Blocks::of_each_layer) return kv;
    kv.page_bytes = tile_tokens * position_bytes(element);
    kv.key_offset = layer * slots_ * slot_blocks * kv.page_bytes;
    kv.value_offset = kv.key_offset + offset;
    return kv;
  }

  // Seconds a layer. Rows share slots where memory has not enough of them: by the time that the second reads a slot, L2 has forgotten the first.
  double time(KvElement element, const Work& work, int page_tokens, Blocks blocks = Blocks::none) {
    slots_ = static_cast<int>(std::min<int64_t>(work.rows, static_cast<int64_t>(kv_bytes_) / view(element, 0, page_tokens, work.context).slot_bytes));
    if (slots_ == 0) return 0;
    std::vector<StepToken> tokens;
    std::vector<AttendPiece> pieces;
    std::vector<AttendTile> tiles;
    const int tile_tokens = attend_tile_tokens(shape_);
    int partials_count = 0;
    for (int row = 0; row < work.rows; row++) {
      const auto first = static_cast<int>(tokens.size());
      for (int i = 0; i < work.count; i++) tokens.push_back({1, work.context - work.count + i, row % slots_, -1});
      const int chunks = work.divided == 0 ? 1 : (work.context - 1) / work.divided + 1;
      for (int i = 0; work.count > 1 && i < work.count; i += tile_tokens)
        for (int chunk = 0; chunk < chunks; chunk++) tiles.push_back({first + i, std::min(tile_tokens, work.count - i), chunk});
      for (int i = 0; work.divided > 0 && i < work.count; i++, partials_count += chunks) tokens[static_cast<size_t>(first + i)].partial = partials_count;
      const int count = (work.context - 1) / chunk_tokens_ + 1, begun = static_cast<int>(pieces.size());
      for (int chunk = 0; work.count == 1 && chunk < count; chunk++) pieces.push_back({first, chunk, begun, count});
    }
    const auto token_count = static_cast<int>(tokens.size()), piece_count = static_cast<int>(pieces.size()), tile_count = static_cast<int>(tiles.size());
    const auto device_tokens = upload(tokens);
    const auto device_pieces = upload(pieces);
    const auto device_tiles = upload(tiles);
    const auto counts = upload(std::vector<StepCounts>{{token_count, piece_count, tile_count, 0}});
    const StepView step{.counts = counts.get(), .tokens = device_tokens.get(), .pieces = device_pieces.get(), .tiles = device_tiles.get(), .tokens_max = token_count,
                        .pieces_max = piece_count, .tiles_max = tile_count, .chunk_tokens = chunk_tokens_, .tile_chunk_tokens = work.divided};
    const DeviceArray<float> partials((pieces.size() + static_cast<size_t>(partials_count)) * shape_.heads * (2 + shape_.head_dim));
    const DeviceArray<int> arrived(tokens.size() * shape_.kv_heads);
    const int slot_blocks = (work.context + millrace::tile_tokens - 1) / millrace::tile_tokens;
    std::vector<int> numbers(static_cast<size_t>(slots_) * static_cast<size_t>(slot_blocks));
    std::iota(numbers.begin(), numbers.end(), 0);
    if (blocks != Blocks::in_order) std::shuffle(numbers.begin(), numbers.end(), std::mt19937(1));
    const auto table = upload(numbers);
    return median_seconds([&] {
      for (int layer = 0; blocks != Blocks::none && layer < layers; layer++)
        bench::attend_pieces_through({table.get(), slot_blocks}, stream_, step, shape_, table_view(element, layer, work.context, blocks), q_.get(), width(),
                                     {partials.get(), arrived.get()}, out_.get(), width());
      for (int layer = 0; blocks == Blocks::none && layer < layers; layer++) {
        const KvView kv = view(element, layer, page_tokens, work.context);
        attend_tiles(stream_, step, shape_, kv, q_.get(), width(), {partials.get(), arrived.get()}, out_.get(), width());
        attend_pieces(stream_, step, shape_, kv, q_.get(), width(), {partials.get(), arrived.get()}, out_.get(), width());
        merge_tiles(stream_, step, shape_, {partials.get(), arrived.get()}, out_.get(), width());
      }
    }) / layers;
  }

  double median_seconds(const std::function<void()>& launch_all) {
    launch_all();  // what is done once for a kernel is done
    check(cudaStreamSynchronize(stream_), "attending");
    return bench::median_graph_seconds(stream_, replays, launch_all, [&] { check(cudaMemsetAsync(flushed_.get(), 1, flushed_.bytes(), stream_), "emptying L2"); });
  }

  const AttendShape shape_;
  const int chunk_tokens_;
  size_t kv_bytes_ = 0;
  int slots_ = 0;
  std::unique_ptr<uint8_t, DeviceFree> kv_;
  DeviceArray<__nv_bfloat16> q_, out_;
  DeviceArray<uint8_t> flushed_;
  DeviceArray<float> scales_ = upload(std::vector<float>(static_cast<size_t>(shape_.kv_heads), 1));  // of E4M3
  cudaStream_t stream_ = nullptr;
};

// Of a crowd as bench_cuda_traffic's, lengths spread evenly: part of what is mapped or taken, and holds no token.
void tell_waste(KvElement element) {
  constexpr int sequences = 1024, shortest = 598, longest = 1536;
  const KvPlan plan = plan_pages(std::vector<int>(layers, 0), shape_8b.kv_heads, shape_8b.head_dim, element, 2 << 20);
  double held = 0, pages = 0, blocks = 0;
  for (int i = 0; i < sequences; i++) {
    const int length = shortest + i * (longest - shortest) / (sequences - 1);
    for (const KvLayout& group : plan.groups) {
      held += static_cast<double>(length * group.token_bytes());
      pages += static_cast<double>(group.pages_for(length) * group.page_bytes);
      blocks += static_cast<double>((length + tile_tokens - 1) / tile_tokens * tile_tokens * group.token_bytes());
    }
  }
  std::printf("%s, %d sequences of %d to %d tokens, %.1f GiB: pages of", element == KvElement::e4m3 ? "e4m3" : "bf16", sequences, shortest, longest, held / (1 << 30));
  for (const KvLayout& group : plan.groups) std::printf(" %d tokens of %d layers,", group.page_tokens, group.layers);
  std::printf(" waste %.2f%%; blocks of 16 tokens waste %.2f%%, and tables take %.2f MiB\n", 100 * (1 - held / pages), 100 * (1 - held / blocks),
              static_cast<double>(sequences * (longest / tile_tokens) * sizeof(int)) / (1 << 20));
}

// False: the two ways answer otherwise.
bool compare_with_tables(Bench& bench) {
  bool is_alike = true;
  for (const KvElement element : {KvElement::bfloat16, KvElement::e4m3}) {
    for (const Work& work : {Work{1, 256, 1}, Work{8, 1000, 1}, Work{64, 4096, 1}}) is_alike = bench.answers_alike(element, work) && is_alike;
    for (const int rows : {1, 8, 64, 256})
      for (const int context : {256, 1024, 4096, 8192}) bench.decode_both_ways(element, {rows, context, 1});
    tell_waste(element);
  }
  std::printf("blocks that lie as pages do: %s\n", is_alike ? "the same bits" : "OTHER ANSWERS");
  return is_alike;
}

}  // namespace

int main(int argc, char** argv) {
  const int chunk_tokens = argc > 1 ? std::atoi(argv[1]) : 512;
  if (chunk_tokens < 16 || chunk_tokens % 16 != 0 || chunk_tokens > 1024) {
    std::printf("usage: %s [chunk tokens, a multiple of 16 up to 1024 [table]]\n", argv[0]);
    return 2;
  }
  try {
    cudaDeviceProp device;
    check(cudaGetDeviceProperties(&device, 0), "looking for a GPU");
    std::printf("# %s, chunks of %d tokens, tiles of %d\n", device.name, chunk_tokens, attend_tile_tokens(shape_8b));
    {
      Bench bench(shape_8b, chunk_tokens);
      if (argc > 2 && std::string(argv[2]) == "table") return compare_with_tables(bench) ? 0 : 1;
      for (const KvElement element : {KvElement::bfloat16, KvElement::e4m3})
        for (const int page_tokens : page_sizes) {
          for (const int rows : {1, 8, 64, 256})
            for (const int context : {256, 1024, 4096, 8192}) bench.decode(element, {rows, context, 1}, page_tokens);
          bench.prefills(element, page_tokens);
        }
    }
    std::printf("# head_dim %d\n", shape_1b.head_dim);
    Bench(shape_1b, chunk_tokens).prefills(KvElement::bfloat16, page_sizes[0]);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return 0;
}
