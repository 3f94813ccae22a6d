// Matrices times few tokens on a GPU, in chains as an engine launches them: captured as a graph, each kernel begun before the one in front of
// it ends, weights from memory and never from L2. Rates count the weights alone and are shown as shares of what read_rate.h reads.
//
//     bench_cuda_matmul_stream matrices     each shape of Llama's by itself, 1 to 64 tokens
//     bench_cuda_matmul_stream layers       whole layers of matrices, one after another
//     bench_cuda_matmul_stream tuning       the same with other choices of StreamTuning
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/memory.h"
#include "cuda/stream_plan.h"
#include "graph_time.h"
#include "read_rate.h"

using namespace millrace;
using Type = DeviceMatrix::Type;
using Kind = MatmulOutput::Kind;

namespace {

struct Shape {
  const char* name;
  int rows, columns;
  Kind kind;
};
struct ModelShape {
  const char* name;
  int layers;
  std::vector<Shape> layer;
  Shape head;
};

const ModelShape models[] = {
    {"8B",
     32,
     {{"8B qkv", 6144, 4096, Kind::store},
      {"8B o", 4096, 4096, Kind::add},
      {"8B gate-up", 28672, 4096, Kind::gate},
      {"8B down", 4096, 14336, Kind::add}},
     {"8B head", 128256, 4096, Kind::store}},
    {"1B",
     16,
     {{"1B qkv", 3072, 2048, Kind::store},
      {"1B o", 2048, 2048, Kind::add},
      {"1B gate-up", 16384, 2048, Kind::gate},
      {"1B down", 2048, 8192, Kind::add}},
     {"1B head", 128256, 2048, Kind::store}},
};
constexpr Type types[] = {Type::bf16, Type::fp8, Type::q4};
constexpr int token_counts[] = {1, 8, 16, 32, 64};
constexpr int replays = 9, launches_max = 256, launches_min = 4, rows_behind = 64, rows_max = 128256, columns_max = 14336;
constexpr size_t chain_bytes = size_t{4} << 30;  // many times L2, as is launches_max of the smallest matrix

const char* name_of(Type type) { return type == Type::bf16 ? "bf16" : type == Type::fp8 ? "fp8" : "q4"; }
size_t bytes_of(const Shape& shape, Type type, int rows) { return static_cast<size_t>(rows * DeviceMatrix{.type = type, .columns = shape.columns}.row_bytes()); }
size_t bytes_of(const Shape& shape, Type type) { return bytes_of(shape, type, shape.rows); }

class Bench {
 public:
  explicit Bench(size_t bytes) : weights_bytes_(bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "allocating weights");
    weights_.reset(static_cast<uint8_t*>(memory));
    check(cudaStreamCreate(&stream_), "creating a stream");
    bench::fill_random(stream_, memory, bytes);
    bench::fill_random(stream_, x_.get(), x_.bytes());
    bench::fill_random(stream_, gated_.get(), gated_.bytes());
    std::vector<float> ones(rows_max, 1.0f);
    check(cudaMemcpy(scales_.get(), ones.data(), scales_.bytes(), cudaMemcpyHostToDevice), "copying scales");
    const size_t read_bytes = std::min(bytes, size_t{4} << 30) >> 16 << 16;
    read_rate_ = static_cast<double>(read_bytes) / median_seconds([&] { bench::read_all(stream_, weights_.get(), read_bytes, sink_.get()); });
    std::printf("# a kernel that only reads: %.2f TB/s\n", read_rate_ * 1e-12);
  }
  double read_rate() const { return read_rate_; }

  // Seconds that the launches take as one graph.
  double median_seconds(const std::function<void()>& launch_all) { return bench::median_graph_seconds(stream_, replays, launch_all, [] {}); }

  // The matrix that lies behind the last one, or at the beginning again.
  void multiply(const Shape& shape, Type type, int tokens, const StreamTuning& tuning) {
    const size_t bytes = bytes_of(shape, type), behind = bytes_of(shape, type, rows_behind);
    if (next_ + bytes + behind > weights_bytes_) next_ = 0;
    const DeviceMatrix w{type, weights_.get() + next_, scales_.get(), shape.rows, shape.columns};
    next_ += bytes;
    const bool is_gate = shape.kind == Kind::gate;
    MatmulOutput output{.kind = shape.kind, .y = y_.get(), .stride = shape.rows};
    if (is_gate) output.y = gated_.get(), output.stride = shape.rows / 2, output.as = type == Type::bf16 ? Activations::bfloat16 : Activations::half;
    // What a layer's last matrix reads is what its gate wrote.
    matmul_stream(stream_, w, shape.columns > shape.rows ? gated_.get() : x_.get(), tokens, output, tuning);
  }

 private:
  size_t weights_bytes_, next_ = 0;
  std::unique_ptr<uint8_t, DeviceFree> weights_;
  DeviceArray<__nv_bfloat16> x_{size_t{stream_tokens_max} * columns_max}, gated_{size_t{stream_tokens_max} * columns_max};
  DeviceArray<float> y_{size_t{stream_tokens_max} * rows_max}, scales_{rows_max};
  DeviceArray<uint32_t> sink_{1};
  cudaStream_t stream_ = nullptr;
  double read_rate_ = 0;
};

void print(const Bench& bench, const char* what, Type type, int tokens, double seconds, double rate) {
  std::printf("%-12s %-5s %6d %9.2f %7.2f %5.1f%%\n", what, name_of(type), tokens, seconds * 1e6, rate * 1e-12, 100 * rate / bench.read_rate());
}

void bench_matrices(Bench& bench) {
  std::printf("%-12s %-5s %6s %9s %7s %6s\n", "matrix", "type", "tokens", "us", "TB/s", "share");
  for (const ModelShape& model : models) {
    std::vector<Shape> shapes = model.layer;
    shapes.push_back(model.head);
    for (const Shape& shape : shapes)
      for (const Type type : types)
        for (const int tokens : token_counts) {
          const size_t bytes = bytes_of(shape, type);
          const int launches = static_cast<int>(std::clamp(chain_bytes / bytes, size_t{launches_min}, size_t{launches_max}));
          const double seconds = bench.median_seconds([&] {
            for (int i = 0; i < launches; i++) bench.multiply(shape, type, tokens, {});
          });
          print(bench, shape.name, type, tokens, seconds / launches, static_cast<double>(bytes) * launches / seconds);
        }
  }
}

// Seconds a layer, and bytes a second.
std::pair<double, double> time_layers(Bench& bench, const ModelShape& model, Type type, int tokens, const StreamTuning& tuning) {
  size_t bytes = 0;
  for (const Shape& shape : model.layer) bytes += bytes_of(shape, type);
  const double seconds = bench.median_seconds([&] {
    for (int i = 0; i < model.layers; i++)
      for (const Shape& shape : model.layer) bench.multiply(shape, type, tokens, tuning);
  });
  return {seconds / model.layers, static_cast<double>(bytes) * model.layers / seconds};
}

void bench_layers(Bench& bench) {
  std::printf("%-12s %-5s %6s %9s %7s %6s\n", "layers of", "type", "tokens", "us", "TB/s", "share");
  for (const ModelShape& model : models)
    for (const Type type : types)
      for (const int tokens : token_counts) {
        const auto [seconds, rate] = time_layers(bench, model, type, tokens, {});
        print(bench, model.name, type, tokens, seconds, rate);
      }
}

struct Choice {
  std::string what;
  StreamTuning tuning;
};
std::vector<Choice> choices() {
  std::vector<Choice> all = {{"as chosen", {}}};
  const auto kib_of = [](int kib) { return std::to_string(kib) + " KiB"; };
  for (const int kib : {48, 64, 80, 100, 128, 192}) all.push_back({"ring " + kib_of(kib), {.ring_bytes = kib << 10, .wide_ring_bytes = kib << 10}});
  for (const int tokens : {1, 9, 33, stream_tokens_max + 1})
    all.push_back({"peers from " + std::to_string(tokens) + " tokens", {.peers_tokens_min = tokens}});
  for (const int blocks : {1, 2, 3}) all.push_back({"tiles of " + std::to_string(blocks) + " blocks", {.tile_blocks_max = blocks}});
  return all;
}

void bench_tuning(Bench& bench) {
  for (const ModelShape& model : models)
    for (const Type type : types) {
      std::printf("%-24s", (std::string(model.name) + " " + name_of(type) + ", us a layer").c_str());
      for (const int tokens : token_counts) std::printf(" %8d", tokens);
      std::printf("\n");
      for (const Choice& choice : choices()) {
        std::printf("%-24s", choice.what.c_str());
        for (const int tokens : token_counts) std::printf(" %8.2f", time_layers(bench, model, type, tokens, choice.tuning).first * 1e6);
        std::printf("\n");
      }
    }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what != "matrices" && what != "layers" && what != "tuning") {
    std::printf("usage: %s matrices|layers|tuning\n", argv[0]);
    return 2;
  }
  try {
    cudaDeviceProp device;
    check(cudaGetDeviceProperties(&device, 0), "looking for a GPU");
    std::printf("# %s, %d multiprocessors, %d MiB of L2\n", device.name, device.multiProcessorCount, device.l2CacheSize >> 20);
    Bench bench(size_t{15} << 30);
    if (what == "matrices") bench_matrices(bench);
    if (what == "layers") bench_layers(bench);
    if (what == "tuning") bench_tuning(bench);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return 0;
}
