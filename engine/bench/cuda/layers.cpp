// A model's layers for few tokens by one kernel, as an engine's step runs them: embedding in front, attention over contexts of so many positions. Shares are of what
// read_rate.h reads; bytes are the weights and the contexts' keys and values.
//
//     bench_cuda_layers [CONTEXT]    8B's and 1B's shapes, bfloat16, E4M3 and 4 bits, 1, 8 and 16 tokens
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cuda/layers.h"
#include "graph_time.h"
#include "read_rate.h"

using namespace millrace;
using Stored = DeviceMatrix::Type;
using Kind = MatmulOutput::Kind;

namespace {

struct Shape {
  const char* name;
  int layers, hidden, ffn, heads, kv_heads, head_dim;

  int width() const { return heads * head_dim; }
  int qkv_rows() const { return (heads + 2 * kv_heads) * head_dim; }
};
constexpr Shape shapes[] = {{"8B", 32, 4096, 14336, 32, 8, 128}, {"1B", 16, 2048, 8192, 32, 8, 64}};
constexpr int replays = 9, page_tokens = 16, chunk_tokens = 512, vocabulary = 64, rows_behind = 64, ones_a_layer = 1 << 16;

class Stack {
 public:
  Stack(const Shape& shape, Stored type, KvElement element, int tokens, int context, uint8_t* weights, const float* ones) : shape_(shape), type_(type), element_(element), tokens_(tokens), ones_(ones) {
    const auto t = static_cast<size_t>((tokens + 7) / 8 * 8);
    x_ = DeviceArray<float>(t * static_cast<size_t>(shape.hidden));
    squares_ = DeviceArray<float>(t * static_cast<size_t>(shape.hidden / square_values));
    qkv_ = DeviceArray<float>(t * static_cast<size_t>(shape.qkv_rows()));
    normed_ = DeviceArray<__nv_bfloat16>(t * static_cast<size_t>(shape.hidden));
    q_ = DeviceArray<__nv_bfloat16>(t * static_cast<size_t>(shape.width()));
    attended_ = DeviceArray<__nv_bfloat16>(t * static_cast<size_t>(shape.width()));
    gated_ = DeviceArray<__nv_bfloat16>(t * static_cast<size_t>(shape.ffn));
    embedding_ = DeviceArray<__nv_bfloat16>(static_cast<size_t>(vocabulary * shape.hidden));
    turns_ = DeviceArray<float2>(t * static_cast<size_t>(shape.head_dim / 2));
    last_ = DeviceArray<int32_t>(t);
    history_ = DeviceArray<int32_t>(t * static_cast<size_t>(context + 1));
    std::vector<StepToken> list;
    std::vector<AttendPiece> pieces;
    const int chunks = context / chunk_tokens + 1;
    for (int i = 0; i < tokens; i++) {
      list.push_back({i, context, i, -1});
      for (int chunk = 0; chunk < chunks; chunk++) pieces.push_back({i, chunk, i * chunks, chunks});
    }
    counts_ = upload(std::vector<StepCounts>{{tokens, static_cast<int>(pieces.size()), 0, 0}});
    list_ = upload(list);
    pieces_ = upload(pieces);
    partials_ = DeviceArray<float>(pieces.size() * static_cast<size_t>(shape.heads * (2 + shape.head_dim)));
    arrived_ = DeviceArray<int>(t * static_cast<size_t>(shape.kv_heads));
    kv_.page_tokens = page_tokens;
    kv_.element = element;
    kv_.head_bytes = page_tokens * shape.head_dim * bytes_of(element);
    kv_.page_bytes = shape.layers * 2 * shape.kv_heads * kv_.head_bytes;
    kv_.slot_bytes = kv_.page_bytes * (context / page_tokens + 1);
    memory_ = DeviceArray<uint8_t>(static_cast<size_t>(kv_.slot_bytes) * t);
    kv_.base = memory_.get();
    if (element == KvElement::e4m3) kv_.key_scales = kv_.value_scales = take_ones(shape.kv_heads);
    for (int layer = 0; layer < shape.layers; layer++) layers_.push_back(this->layer(layer, weights));
    kernel_ = std::make_unique<Layers>(layers_, tokens);
  }

  void run(cudaStream_t stream) const {
    EmbedTask task{.embedding = embedding_.get(), .hidden = shape_.hidden, .columns = shape_.hidden, .last_tokens = last_.get(), .history = history_.get(), .x = x_.get(), .next = layers_[0].products[1].output.next};
    task.ropes.count = 1;
    task.ropes.rope[0] = rope();
    embed(stream, step(), task);
    kernel_->run(stream, step());
  }
  double bytes() const { return bytes_ + static_cast<double>(memory_.count()) / ((tokens_ + 7) / 8 * 8) * tokens_; }

 private:
  template <typename Value>
  static DeviceArray<Value> upload(const std::vector<Value>& values) {
    DeviceArray<Value> array(values.size());
    check(cudaMemcpy(array.get(), values.data(), array.bytes(), cudaMemcpyHostToDevice), "copying");
    return array;
  }
  DeviceMatrix matrix(int rows, int columns, uint8_t*& weights) {
    const DeviceMatrix w{type_, weights, take_ones(rows), rows, columns};
    weights += rows * w.row_bytes();
    bytes_ += static_cast<double>(rows * w.row_bytes());
    return w;
  }
  // Scales and norms of their own, as layers have them: what another layer read is no help.
  const float* take_ones(int count) { return (ones_ += count) - count; }
  Layer layer(int number, uint8_t*& weights) {
    const Activations as = type_ == Stored::bf16 ? Activations::bfloat16 : Activations::half;
    const NormInput norm{squares_.get(), shape_.hidden / square_values, shape_.hidden, 1e-5f};
    const auto next = [&] { return NormOutput{take_ones(shape_.hidden), normed_.get(), shape_.hidden, squares_.get(), as}; };
    Layer layer;
    layer.products[0] = {matrix(shape_.qkv_rows(), shape_.hidden, weights), normed_.get(), {.y = qkv_.get(), .stride = shape_.qkv_rows(), .norm = norm}};
    layer.products[1] = {matrix(shape_.hidden, shape_.width(), weights), attended_.get(), {.kind = Kind::add, .y = x_.get(), .stride = shape_.hidden, .next = next()}};
    layer.products[2] = {matrix(2 * shape_.ffn, shape_.hidden, weights), normed_.get(), {.kind = Kind::gate, .y = gated_.get(), .stride = shape_.ffn, .as = as, .norm = norm}};
    layer.products[3] = {matrix(shape_.hidden, shape_.ffn, weights), gated_.get(), {.kind = Kind::add, .y = x_.get(), .stride = shape_.hidden, .next = next()}};
    KvView kv = kv_;
    kv.key_offset = 2 * number * shape_.kv_heads * kv.head_bytes;
    kv.value_offset = kv.key_offset + shape_.kv_heads * kv.head_bytes;
    const HeadsTask heads{.qkv = qkv_.get(), .heads = shape_.heads, .kv_heads = shape_.kv_heads, .head_dim = shape_.head_dim, .rope = rope(), .kv = kv, .q = q_.get()};
    layer.attention = {heads, {.shape = {shape_.heads, shape_.kv_heads, shape_.head_dim}, .kv = runs_of(kv, shape_.head_dim), .q = q_.get(), .q_stride = shape_.width(), .out = attended_.get(),
                               .out_stride = shape_.width(), .as = as, .scratch = {partials_.get(), arrived_.get()}, .group = shape_.heads / shape_.kv_heads, .blocks = 1}};
    return layer;
  }
  DeviceRope rope() const { return {ones_, turns_.get(), shape_.head_dim / 2, 1, true}; }
  StepView step() const {
    return {.counts = counts_.get(), .tokens = list_.get(), .pieces = pieces_.get(), .tokens_max = tokens_, .pieces_max = static_cast<int>(pieces_.count()), .chunk_tokens = chunk_tokens};
  }

  Shape shape_;
  Stored type_;
  KvElement element_;
  int tokens_;
  const float* ones_;
  double bytes_ = 0;
  DeviceArray<float> x_, squares_, qkv_, partials_;
  DeviceArray<__nv_bfloat16> normed_, q_, attended_, gated_, embedding_;
  DeviceArray<float2> turns_;
  DeviceArray<int> arrived_;
  DeviceArray<int32_t> last_, history_;
  DeviceArray<StepToken> list_;
  DeviceArray<StepCounts> counts_;
  DeviceArray<AttendPiece> pieces_;
  DeviceArray<uint8_t> memory_;
  KvView kv_;
  std::vector<Layer> layers_;
  std::unique_ptr<Layers> kernel_;
};

}  // namespace

int main(int count, char** words) {
  const int context = count > 1 ? std::atoi(words[1]) : 256;
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream), "creating a stream");
  DeviceArray<uint8_t> weights((size_t{14} << 30) + (size_t{rows_behind} << 15));
  bench::fill_random(stream, weights.get(), weights.bytes());
  DeviceArray<float> ones(size_t{ones_a_layer} * 32);
  const std::vector<float> values(ones.count(), 1.0f);
  check(cudaMemcpy(ones.get(), values.data(), ones.bytes(), cudaMemcpyHostToDevice), "copying");
  DeviceArray<uint32_t> sink(1);
  const size_t read_bytes = size_t{4} << 30;
  const auto seconds = [&](const auto& launch) { return bench::median_graph_seconds(stream, replays, launch, [] {}); };
  const double rate = static_cast<double>(read_bytes) / seconds([&] { bench::read_all(stream, weights.get(), read_bytes, sink.get()); });
  std::printf("# a kernel that only reads: %.2f TB/s; contexts of %d\n%-4s %-5s %6s %9s %6s\n", rate * 1e-12, context, "", "type", "tokens", "us", "share");
  for (const Shape& shape : shapes)
    for (const auto& [type, name] : {std::pair(Stored::bf16, "bf16"), std::pair(Stored::fp8, "fp8"), std::pair(Stored::q4, "q4")})
      for (const int tokens : {1, 8, 16}) {
        const Stack stack(shape, type, KvElement::bfloat16, tokens, context, weights.get(), ones.get());
        const double time = seconds([&] { stack.run(stream); });
        std::printf("%-4s %-5s %6d %9.2f %5.1f%%\n", shape.name, name, tokens, time / shape.layers * 1e6, 100 * stack.bytes() / time / rate);
      }
  check(cudaStreamDestroy(stream), "ending");
  return 0;
}
