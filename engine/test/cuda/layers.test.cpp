// All layers of a step in one kernel against the same layers by a kernel each (matmul_stream, finish_heads, attend_pieces, whose own tests hold them to sums in double): what
// they add to the residual stream, and keys and values in memory, of which nothing else may be written.
#include "cuda/layers.h"

#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "support/cuda_product.h"

using namespace millrace;
using namespace millrace::test;

namespace {

// Of the norm of a token's x: attention adds in another order, and its result is rounded to bfloat16.
constexpr double layers_error_max = 0.01;
// Of keys and values in E4M3, of which some round the other way.
constexpr double e4m3_error_max = 0.03;
constexpr int page_tokens = 16, chunk_tokens = 512, layer_count = 3, vocabulary = 64;

struct LayersForm {
  Stored type = Stored::bf16;
  KvElement element = KvElement::bfloat16;
  int heads = 8, kv_heads = 2, head_dim = 128, hidden = 512, ffn = 768;
  int window = 0;
  float soft_cap = 0;
  bool has_sinks = false, has_bias = false, has_norms = false;
};

class Stack {
 public:
  Stack(Random& random, const LayersForm& form, const std::vector<int>& positions, int padding) : form_(form), tokens_(static_cast<int>(positions.size()) + padding) {
    const int width = form.heads * form.head_dim, rows = (form.heads + 2 * form.kv_heads) * form.head_dim;
    for (int l = 0; l < layer_count; l++) {
      matrices_.emplace_back(random, form.type, rows, form.hidden);
      matrices_.emplace_back(random, form.type, form.hidden, width);
      matrices_.emplace_back(random, form.type, 2 * form.ffn, form.hidden);
      matrices_.emplace_back(random, form.type, form.hidden, form.ffn);
    }
    for (int i = 0; i < 2 * layer_count; i++) norms_.push_back(upload(positive(random, form.hidden)));
    for (int i = 0; i < 2 * layer_count; i++) head_norms_.push_back(upload(positive(random, form.head_dim)));
    sinks_ = upload(random.normals(form.heads));
    list_step(positions, padding);
    make_memory(random, positions);
    const auto t = static_cast<size_t>((tokens_ + 7) / 8 * 8);
    x_ = DeviceArray<float>(t * static_cast<size_t>(form.hidden));
    squares_ = DeviceArray<float>(t * static_cast<size_t>(form.hidden / square_values));
    qkv_ = DeviceArray<float>(t * static_cast<size_t>(rows));
    for (auto [array, columns] : {std::pair(&normed_, form.hidden), std::pair(&q_, width), std::pair(&attended_, width), std::pair(&gated_, form.ffn)})
      *array = DeviceArray<__nv_bfloat16>(t * static_cast<size_t>(columns));
    partials_ = DeviceArray<float>(pieces_.count() * static_cast<size_t>(form.heads * (2 + form.head_dim)));
    arrived_ = DeviceArray<int>(t * static_cast<size_t>(form.kv_heads));
    std::vector<uint16_t> embedding;
    for (int i = 0; i < vocabulary * form.hidden; i++) embedding.push_back(bfloat_of(random.normal()));
    embedding_ = upload(embedding);
    frequencies_ = upload(random.normals(form.head_dim / 2));
    turns_ = DeviceArray<float2>(t * static_cast<size_t>(form.head_dim / 2));
    last_ = DeviceArray<int32_t>(positions.size());
    history_ = DeviceArray<int32_t>(positions.size() * history_stride);
  }

  struct Result {
    std::vector<float> x;
    std::vector<uint8_t> memory;
  };
  Result run_one_by_one() {
    begin();
    for (const Layer& layer : layers()) {
      const auto multiply = [&](const LayerProduct& product) { matmul_stream(nullptr, product.w, product.x, tokens_, product.output); };
      multiply(layer.products[0]);
      finish_heads(nullptr, step(), layer.attention.heads);
      const AttendTask& attend = layer.attention.attend;
      attend_pieces(nullptr, step(), attend.shape, attend.kv.view, attend.q, attend.q_stride, attend.scratch, attend.out, attend.out_stride, attend.as);
      for (int i = 1; i < layer_matrices; i++) multiply(layer.products[i]);
    }
    return result();
  }
  // So often, one behind the other.
  Result run_at_once(int times = 1) {
    const std::vector<Layer> list = layers();
    REQUIRE(can_run_layers(list));
    const Layers kernel(list, tokens_);
    for (int i = 0; i < times; i++) {
      begin();
      kernel.run(nullptr, step());
    }
    for (const int count : download(arrived_)) CHECK(count == 0, "a counter is left at ", count);
    return result();
  }
  // Where the step's own keys and values lie.
  bool is_written(size_t byte) const {
    const auto slot = static_cast<int>(byte / static_cast<size_t>(kv_.slot_bytes));
    const auto inside = static_cast<int64_t>(byte) % kv_.slot_bytes, page = inside / kv_.page_bytes, at = inside % kv_.page_bytes;
    if (slot >= static_cast<int>(positions_.size())) return false;
    const int position = positions_[static_cast<size_t>(slot)], row_bytes = form_.head_dim * bytes_of(form_.element);
    const int64_t heads_bytes = 2 * form_.kv_heads * kv_.head_bytes;
    return page == position / page_tokens && at < layer_count * heads_bytes && at % kv_.head_bytes / row_bytes == position % page_tokens;
  }
  const std::vector<uint8_t>& memory_before() const { return memory_; }
  int rows() const { return static_cast<int>(positions_.size()); }

 private:
  static constexpr size_t history_stride = 8192;

  static std::vector<float> positive(Random& random, int count) {
    std::vector<float> values;
    for (int i = 0; i < count; i++) values.push_back(static_cast<float>(0.5 + random.uniform()));
    return values;
  }
  void list_step(const std::vector<int>& positions, int padding) {
    positions_ = positions;
    std::vector<StepToken> tokens;
    std::vector<AttendPiece> pieces;
    for (size_t t = 0; t < positions.size(); t++) {
      tokens.push_back({static_cast<int>(t) + 3, positions[t], static_cast<int>(t), -1});
      const int first = static_cast<int>(pieces.size()), count = positions[t] / chunk_tokens + 1;
      for (int chunk = 0; chunk < count; chunk++) pieces.push_back({static_cast<int>(t), chunk, first, count});
    }
    tokens.resize(tokens.size() + static_cast<size_t>(padding));
    counts_ = upload(std::vector<StepCounts>{{static_cast<int>(positions.size()), static_cast<int>(pieces.size()), 0, 0}});
    step_tokens_ = upload(tokens);
    pieces_ = upload(pieces);
  }
  StepView step() const {
    return {.counts = counts_.get(), .tokens = step_tokens_.get(), .pieces = pieces_.get(), .tokens_max = tokens_, .pieces_max = static_cast<int>(pieces_.count()), .chunk_tokens = chunk_tokens};
  }
  // Keys and values of positions before a token's are numbers, all else is NaNs.
  void make_memory(Random& random, const std::vector<int>& positions) {
    int pages = 1;
    for (const int position : positions) pages = std::max(pages, position / page_tokens + 1);
    kv_.page_tokens = page_tokens;
    kv_.element = form_.element;
    kv_.head_bytes = page_tokens * form_.head_dim * bytes_of(form_.element);
    kv_.page_bytes = layer_count * 2 * form_.kv_heads * kv_.head_bytes + 256;
    kv_.slot_bytes = kv_.page_bytes * (pages + 1);
    memory_.assign(static_cast<size_t>(kv_.slot_bytes) * positions.size(), 0xff);
    const int row_bytes = form_.head_dim * bytes_of(form_.element);
    for (size_t slot = 0; slot < positions.size(); slot++)
      for (int position = 0; position < positions[slot]; position++)
        for (int head = 0; head < layer_count * 2 * form_.kv_heads; head++) {
          uint8_t* row = memory_.data() + static_cast<int64_t>(slot) * kv_.slot_bytes + position / page_tokens * kv_.page_bytes + head * kv_.head_bytes + position % page_tokens * row_bytes;
          for (int d = 0; d < form_.head_dim; d++) {
            if (form_.element == KvElement::e4m3) {
              row[d] = static_cast<uint8_t>(random.next() & 0xb7);  // up to 15
              continue;
            }
            const uint16_t bits = bfloat_of(random.normal());
            row[2 * d] = static_cast<uint8_t>(bits), row[2 * d + 1] = static_cast<uint8_t>(bits >> 8);
          }
        }
    scales_ = upload(std::vector<float>(static_cast<size_t>(form_.kv_heads), 0.25f));
  }

  std::vector<Layer> layers() const {
    std::vector<Layer> list;
    const Activations as = activations_of(form_.type);
    const int width = form_.heads * form_.head_dim;
    const auto bias = [&](const Matrix& matrix) { return form_.has_bias ? matrix.device_bias() : nullptr; };
    const NormInput norm{squares_.get(), form_.hidden / square_values, form_.hidden, 1e-5f};
    for (int l = 0; l < layer_count; l++) {
      const auto& matrix = [&](int i) -> const Matrix& { return matrices_[static_cast<size_t>(l * layer_matrices + i)]; };
      const auto next = [&](size_t number) { return number < norms_.size() ? NormOutput{norms_[number].get(), normed_.get(), form_.hidden, squares_.get(), as} : NormOutput{}; };
      const auto head_norm = [&](size_t number) { return form_.has_norms ? DeviceNorm{head_norms_[number].get(), nullptr, false, 1e-6f, form_.head_dim} : DeviceNorm{}; };
      const auto number = static_cast<size_t>(2 * l);
      Layer layer;
      layer.products[0] = {matrix(0).device(), normed_.get(), {.y = qkv_.get(), .stride = matrix(0).rows(), .bias = bias(matrix(0)), .norm = norm}};
      layer.products[1] = {matrix(1).device(), attended_.get(), {.kind = Kind::add, .y = x_.get(), .stride = form_.hidden, .bias = bias(matrix(1)), .next = next(number + 1)}};
      layer.products[2] = {matrix(2).device(), normed_.get(), {.kind = Kind::gate, .y = gated_.get(), .stride = form_.ffn, .bias = bias(matrix(2)), .as = as, .norm = norm}};
      layer.products[3] = {matrix(3).device(), gated_.get(), {.kind = Kind::add, .y = x_.get(), .stride = form_.hidden, .bias = bias(matrix(3)), .next = next(number + 2)}};
      KvView kv = kv_;
      kv.base = device_memory_.get();
      kv.key_offset = 2 * l * form_.kv_heads * kv.head_bytes;
      kv.value_offset = kv.key_offset + form_.kv_heads * kv.head_bytes;
      if (form_.element == KvElement::e4m3) kv.key_scales = kv.value_scales = scales_.get();
      HeadsTask heads{.qkv = qkv_.get(), .heads = form_.heads, .kv_heads = form_.kv_heads, .head_dim = form_.head_dim, .q_norm = head_norm(number), .k_norm = head_norm(number + 1), .rope = rope(),
                      .query_scale = 1 / std::sqrt(static_cast<float>(form_.head_dim)), .kv = kv, .q = q_.get()};
      const AttendShape shape{form_.heads, form_.kv_heads, form_.head_dim, form_.window, form_.soft_cap, form_.has_sinks ? sinks_.get() : nullptr};
      layer.attention = {heads, {.shape = shape, .kv = runs_of(kv, form_.head_dim), .q = q_.get(), .q_stride = width, .out = attended_.get(), .out_stride = width, .as = as,
                                 .scratch = {partials_.get(), arrived_.get()}, .group = form_.heads / form_.kv_heads, .blocks = 1}};
      list.push_back(layer);
    }
    return list;
  }
  DeviceRope rope() const { return {frequencies_.get(), turns_.get(), form_.head_dim / 2, 1, true}; }
  void begin() {
    if (device_memory_.count() == 0) device_memory_ = DeviceArray<uint8_t>(memory_.size());
    check(cudaMemcpy(device_memory_.get(), memory_.data(), memory_.size(), cudaMemcpyHostToDevice), "writing");
    EmbedTask task{.embedding = reinterpret_cast<const __nv_bfloat16*>(embedding_.get()), .hidden = form_.hidden, .columns = form_.hidden, .last_tokens = last_.get(), .history = history_.get(),
                   .history_stride = history_stride, .x = x_.get()};
    task.ropes.count = 1;
    task.ropes.rope[0] = rope();
    task.next = {norms_[0].get(), normed_.get(), form_.hidden, squares_.get(), activations_of(form_.type)};
    embed(nullptr, step(), task);
  }
  Result result() const {
    check(cudaDeviceSynchronize(), "running layers");
    return {download(x_), download(device_memory_)};
  }

  LayersForm form_;
  int tokens_;
  std::vector<int> positions_;
  std::vector<Matrix> matrices_;
  std::vector<DeviceArray<float>> norms_, head_norms_;
  DeviceArray<float> x_, squares_, qkv_, partials_, sinks_, frequencies_, scales_;
  DeviceArray<__nv_bfloat16> normed_, q_, attended_, gated_;
  DeviceArray<uint16_t> embedding_;
  DeviceArray<float2> turns_;
  DeviceArray<int> arrived_;
  DeviceArray<int32_t> last_, history_;
  DeviceArray<StepCounts> counts_;
  DeviceArray<StepToken> step_tokens_;
  DeviceArray<AttendPiece> pieces_;
  KvView kv_;
  std::vector<uint8_t> memory_;
  DeviceArray<uint8_t> device_memory_;
};

void check_same(Random& random, const LayersForm& form, const std::vector<int>& positions, int padding) {
  Stack stack(random, form, positions, padding);
  const Stack::Result right = stack.run_one_by_one(), got = stack.run_at_once(), again = stack.run_at_once(3);
  const auto what = sentence("type, E4M3 keys, heads, KV heads, dimensions, tokens, first position", show(form.type), ", ", form.element == KvElement::e4m3, ", ", form.heads, ", ", form.kv_heads, ", ",
                             form.head_dim, ", ", positions.size(), ", ", positions[0]);
  for (int t = 0; t < stack.rows(); t++) {
    double error = 0, norm = 0;
    for (int i = 0; i < form.hidden; i++) {
      const auto at = static_cast<size_t>(t * form.hidden + i);
      error += std::pow(double{got.x[at]} - right.x[at], 2), norm += std::pow(double{right.x[at]}, 2);
    }
    CHECK(std::sqrt(error) <= layers_error_max * std::sqrt(norm), "token ", t, " is off by ", std::sqrt(error / norm), " of its norm; ", what);
    const auto begin = static_cast<std::ptrdiff_t>(t * form.hidden), end = begin + form.hidden;
    CHECK(std::equal(got.x.begin() + begin, got.x.begin() + end, again.x.begin() + begin), "token ", t, " has other bits the next time; ", what);
  }
  int touched = 0;
  double error = 0, norm = 0;
  const bool is_e4m3 = form.element == KvElement::e4m3;
  for (size_t i = 0; i < got.memory.size(); i += is_e4m3 ? 1 : 2) {
    const auto value = [&](const std::vector<uint8_t>& memory) { return double{is_e4m3 ? e4m3_of(memory[i]) : float_of(static_cast<uint16_t>(memory[i] | memory[i + 1] << 8))}; };
    if (stack.is_written(i))
      error += std::pow(value(got.memory) - value(right.memory), 2), norm += std::pow(value(right.memory), 2);
    else
      touched += got.memory[i] != stack.memory_before()[i] || (!is_e4m3 && got.memory[i + 1] != stack.memory_before()[i + 1]);
  }
  CHECK(touched == 0, touched, " values beside the tokens' own keys and values were written; ", what);
  CHECK(std::sqrt(error) <= (is_e4m3 ? e4m3_error_max : layers_error_max) * std::sqrt(norm), "the tokens' own keys and values are off by ", std::sqrt(error / norm), " of their norm; ", what);
}

}  // namespace

TEST("one engine at a time has a device for the kernel of all layers, and the next one when it ends") {
  const LayersClaim other(1);
  {
    const LayersClaim first(0), second(0);
    CHECK(first.is_granted() && !second.is_granted());
  }
  const LayersClaim third(0), fourth(1);
  CHECK(third.is_granted() && other.is_granted() && !fourth.is_granted());
}

TEST("layers in one kernel are what they are in a kernel each, for all types, heads and numbers of tokens") {
  need_gpu();
  Random random;
  for (const Stored type : {Stored::bf16, Stored::fp8, Stored::q4})
    for (const KvElement element : {KvElement::bfloat16, KvElement::e4m3})
      for (const int head_dim : {64, 128})
        for (const int tokens : {1, 3, 8, 16}) {
          const int kv_heads = random.between(1, 4), group = random.between(1, layers_group_max);
          std::vector<int> positions;
          for (int t = 0; t < tokens; t++) positions.push_back(random.chance(0.3) ? random.between(0, 20) : random.between(0, 1500));
          check_same(random, {.type = type, .element = element, .heads = kv_heads * group, .kv_heads = kv_heads, .head_dim = head_dim}, positions, tokens == 3 ? 1 : 0);
        }
}

TEST("windows, caps, sinks, biases and norms of heads are the same in one kernel") {
  need_gpu();
  Random random;
  for (const int feature : {0, 1, 2, 3, 4}) {
    LayersForm form{.head_dim = random.chance(0.5) ? 64 : 128, .window = feature == 0 ? random.between(1, 700) : 0, .soft_cap = feature == 1 ? 5.0f : 0, .has_sinks = feature == 2, .has_bias = feature == 3,
              .has_norms = feature == 4};
    for (const Stored type : {Stored::bf16, Stored::fp8}) {
      form.type = type;
      check_same(random, form, {random.between(0, 3000), 0, 127, 128, 15, 16}, 2);
    }
  }
}

TEST("layers of models' shapes, of more stages than the ring has and of fewer blocks than multiprocessors, are the same in one kernel") {
  need_gpu();
  Random random;
  check_same(random, {.heads = 32, .kv_heads = 8, .hidden = 4096, .ffn = 14336}, {300, 5000, 31, 32}, 0);
  check_same(random, {.type = Stored::fp8, .element = KvElement::e4m3, .heads = 32, .kv_heads = 8, .hidden = 4096, .ffn = 14336}, {300}, 0);
  check_same(random, {.heads = 32, .kv_heads = 8, .head_dim = 64, .hidden = 2048, .ffn = 8192}, {1023, 1024}, 0);
  check_same(random, {.type = Stored::fp8, .heads = 9, .kv_heads = 3, .head_dim = 64, .hidden = 576, .ffn = 1536}, {77}, 0);
}
