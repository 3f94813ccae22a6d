// Matrices times few and some tokens on a GPU, in chains as an engine launches them: captured as a graph, each kernel begun before the one in front of
// it ends, weights from memory and never from L2. Rates count the weights alone and are shown as shares of what read_rate.h reads.
//
//     bench_cuda_matmul_stream matrices     each shape of Llama's by itself, 1 to 64 tokens
//     bench_cuda_matmul_stream layers       whole layers of matrices, one after another: by matmul_stream, and from 16 tokens on by matmul_wide and by cuBLASLt, whose
//                                           gates and quantized tokens would come on top
//     bench_cuda_matmul_stream tuning       the same with other choices of StreamTuning
//     bench_cuda_matmul_stream wide         each of 8B's shapes by matmul_wide, with its columns divided in every way, beside another kernel's ring and alone
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/blaslt.h"
#include "cuda/kernels.h"
#include "cuda/memory.h"
#include "cuda/stream_plan.h"
#include "cuda/wide_plan.h"
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
constexpr int token_counts[] = {1, 8, 16, 32, 64}, wide_token_counts[] = {16, 32, 64, 96, 128};
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

  void stream(const Shape& shape, Type type, int tokens, const StreamTuning& tuning) {
    // What a layer's last matrix reads is what its gate wrote.
    matmul_stream(stream_, next(shape, type), input(shape), tokens, output(shape, type), tuning);
  }
  void wide(const Shape& shape, Type type, int tokens, const WideTuning& tuning) { matmul_wide(stream_, next(shape, type), input(shape), tokens, output(shape, type), tuning); }
  void blaslt(const Shape& shape, Type type, int tokens) {
    const BlasLt::Result result = shape.kind == Kind::gate ? BlasLt::Result::bf16 : BlasLt::Result::f32;
    blaslt_->multiply(stream_, next(shape, type), {input(shape), scales_.get()}, tokens, result, y_.get(), shape.rows, shape.kind == Kind::add);
  }
  bool has_blaslt() const { return blaslt_ != nullptr; }

 private:
  // The matrix that lies behind the last one, or at the beginning again.
  DeviceMatrix next(const Shape& shape, Type type) {
    const size_t bytes = bytes_of(shape, type), behind = bytes_of(shape, type, rows_behind);
    if (next_ + bytes + behind > weights_bytes_) next_ = 0;
    const DeviceMatrix w{type, weights_.get() + next_, scales_.get(), shape.rows, shape.columns};
    next_ += bytes;
    return w;
  }
  const __nv_bfloat16* input(const Shape& shape) const { return shape.columns > shape.rows ? gated_.get() : x_.get(); }
  MatmulOutput output(const Shape& shape, Type type) const {
    if (shape.kind != Kind::gate) return {.kind = shape.kind, .y = y_.get(), .stride = shape.rows};
    return {.kind = shape.kind, .y = gated_.get(), .stride = shape.rows / 2, .as = type == Type::bf16 ? Activations::bfloat16 : Activations::half};
  }

  size_t weights_bytes_, next_ = 0;
  std::unique_ptr<uint8_t, DeviceFree> weights_;
  DeviceArray<__nv_bfloat16> x_{size_t{wide_tokens_max} * columns_max}, gated_{size_t{wide_tokens_max} * columns_max};
  DeviceArray<float> y_{size_t{wide_tokens_max} * rows_max}, scales_{rows_max};
  DeviceArray<uint32_t> sink_{1};
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<BlasLt> blaslt_ = BlasLt::open();
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
            for (int i = 0; i < launches; i++) bench.stream(shape, type, tokens, {});
          });
          print(bench, shape.name, type, tokens, seconds / launches, static_cast<double>(bytes) * launches / seconds);
        }
  }
}

using Multiply = std::function<void(const Shape&)>;

// Seconds a layer, and bytes a second.
std::pair<double, double> time_layers(Bench& bench, const ModelShape& model, Type type, const Multiply& multiply) {
  size_t bytes = 0;
  for (const Shape& shape : model.layer) bytes += bytes_of(shape, type);
  const double seconds = bench.median_seconds([&] {
    for (int i = 0; i < model.layers; i++)
      for (const Shape& shape : model.layer) multiply(shape);
  });
  return {seconds / model.layers, static_cast<double>(bytes) * model.layers / seconds};
}

void bench_layers(Bench& bench) {
  std::printf("%-12s %-5s %6s %9s %7s %6s\n", "layers of", "type", "tokens", "us", "TB/s", "share");
  for (const ModelShape& model : models)
    for (const Type type : types) {
      const auto show = [&](const char* by, int tokens, const Multiply& multiply) {
        const auto [seconds, rate] = time_layers(bench, model, type, multiply);
        print(bench, (std::string(model.name) + " " + by).c_str(), type, tokens, seconds, rate);
      };
      for (const int tokens : token_counts) show("stream", tokens, [&](const Shape& shape) { bench.stream(shape, type, tokens, {}); });
      if (type == Type::q4) continue;
      for (const int tokens : wide_token_counts) {
        show("wide", tokens, [&](const Shape& shape) { bench.wide(shape, type, tokens, {}); });
        if (bench.has_blaslt()) show("cuBLASLt", tokens, [&](const Shape& shape) { bench.blaslt(shape, type, tokens); });
      }
    }
}

void bench_wide(Bench& bench) {
  constexpr int alone_bytes = WideTuning{}.alone_bytes;
  std::printf("%-12s %-5s %6s %9s %9s   us with columns in 1, 2, 3, 4 parts, and with a ring of %d KiB: alone on a multiprocessor\n", "matrix", "type", "tokens", "as chosen", "cuBLASLt", alone_bytes >> 10);
  for (const Type type : {Type::bf16, Type::fp8})
    for (const Shape& shape : models[0].layer)
      for (const int tokens : wide_token_counts) {
        constexpr int launches = 32;
        const auto us = [&](const std::function<void()>& multiply) {
          multiply();  // what is refused must not be while it is captured
          const double seconds = bench.median_seconds([&] {
            for (int i = 0; i < launches; i++) multiply();
          });
          return seconds / launches * 1e6;
        };
        std::printf("%-12s %-5s %6d %9.2f %9.2f  ", shape.name, name_of(type), tokens, us([&] { bench.wide(shape, type, tokens, {}); }),
                    bench.has_blaslt() ? us([&] { bench.blaslt(shape, type, tokens); }) : 0.0);
        for (const bool is_alone : {false, true})
          for (int splits = 1; splits <= wide_splits_max; splits++) try {
              std::printf(" %7.2f", us([&] { bench.wide(shape, type, tokens, {.ring_bytes = is_alone ? 0 : WideTuning{}.ring_bytes, .splits = splits}); }));
            } catch (const CudaError&) {
              std::printf(" %7s", "-");  // too few stages, or too many clusters
            }
        std::printf("\n");
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
        for (const int tokens : token_counts) std::printf(" %8.2f", time_layers(bench, model, type, [&](const Shape& shape) { bench.stream(shape, type, tokens, choice.tuning); }).first * 1e6);
        std::printf("\n");
      }
    }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what != "matrices" && what != "layers" && what != "tuning" && what != "wide") {
    std::printf("usage: %s matrices|layers|tuning|wide\n", argv[0]);
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
    if (what == "wide") bench_wide(bench);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return 0;
}
