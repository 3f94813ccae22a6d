// Attention over paged keys and values, in bfloat16 and in E4M3, against sums in double precision: single tokens in pieces, several tokens of a row in tiles, and both in
// one step. Memory that no query sees, and what should not be written, holds NaNs: whoever reads it or writes there shows.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/memory.h"
#include "support/cuda_step.h"
#include "support/random.h"
#include "support/test.h"

using namespace millrace;
using test::Random, test::bfloat_of, test::download, test::float_of, test::need_gpu, test::upload;

namespace {

// Of the norm of each token's and head's result: weights and the result are rounded to bfloat16, by up to 2^-9 of a value.
constexpr double error_max = 0.01;
constexpr int heads_checked = 2, tokens_checked = 12, spare_pieces = 5;  // of each token and of each row
constexpr uint16_t poison = 0xffff;                    // a NaN, as float16, and as two of E4M3, too
constexpr float small_scale = 0x1p-7f;

struct Form {
  int heads = 8, kv_heads = 2, head_dim = 128, page_tokens = 16, chunk_tokens = 128;
  int window = 0;
  float soft_cap = 0;
  bool has_sinks = false;
  int tile_chunk_tokens = 0;
  KvElement element = KvElement::bfloat16;

  int group() const { return heads / kv_heads; }
  int width() const { return heads * head_dim; }
  int first_seen(int position) const { return window > 0 ? std::max(0, position + 1 - window) : 0; }
};

// The last `count` tokens of a context of `context`. Its values come from the seed alone, whatever else is in the step.
struct SceneRow {
  int context = 1, count = 1;
  uint64_t seed = 1;
};

class Scene {
 public:
  Scene(const Form& form, const std::vector<SceneRow>& rows) : form_(form), rows_(rows), q_stride_(form.width() + 16), out_stride_(form.width() + 24) {
    int pages = 1;
    for (const SceneRow& row : rows) pages = std::max(pages, (row.context + form.page_tokens - 1) / form.page_tokens);
    kv_.page_tokens = form.page_tokens;
    kv_.element = form.element;
    kv_.head_bytes = form.page_tokens / tile_tokens * tile_bytes_of(form.element, form.head_dim);
    kv_.key_offset = 512;
    kv_.value_offset = 512 + form.kv_heads * kv_.head_bytes + 64;
    kv_.page_bytes = kv_.value_offset + form.kv_heads * kv_.head_bytes + 96;
    kv_.slot_bytes = kv_.page_bytes * (pages + 1);
    memory_.assign(static_cast<size_t>(kv_.slot_bytes) * (rows.size() + 1) / 2, poison);
    Random random(99);
    for (int head = 0; head < form.heads; head++) sinks_.push_back(2 * random.normal());
    // Of E4M3: keys of a random byte have a size of about 1 with either, and values any.
    for (int head = 0; head < form.kv_heads; head++) {
      key_scales_.push_back(random.chance(0.5) ? small_scale : 2);
      value_scales_.push_back(std::ldexp(1.0f, random.between(-40, 20)));
    }
    for (size_t r = 0; r < rows.size(); r++) add_row(r);
    tokens_.push_back({});
  }

  // Runs the step; results are [tokens][width].
  std::vector<uint16_t> run(int times = 1) {
    const auto memory = upload(memory_);
    const auto tokens = upload(numbered_tokens());
    const auto pieces = upload(pieces_);
    const auto tiles = upload(tiles_);
    const auto q = upload(padded_queries());
    const auto sinks = upload(sinks_);
    const auto token_count = static_cast<int>(tokens_.size()), piece_count = static_cast<int>(pieces_.size()), tile_count = static_cast<int>(tiles_.size());
    const auto counts = upload(std::vector<StepCounts>{{token_count, piece_count, tile_count, 0}});
    // More than there is, as in a graph that was captured for larger steps.
    const StepView step{.counts = counts.get(), .tokens = tokens.get(), .pieces = pieces.get(), .tiles = tiles.get(), .tokens_max = token_count, .pieces_max = piece_count + spare_pieces,
                        .tiles_max = tile_count + 3, .chunk_tokens = form_.chunk_tokens, .tile_chunk_tokens = form_.tile_chunk_tokens};
    KvView kv = kv_;
    kv.base = reinterpret_cast<uint8_t*>(memory.get());
    const auto key_scales = upload(key_scales_), value_scales = upload(value_scales_);
    if (form_.element == KvElement::e4m3) kv.key_scales = key_scales.get(), kv.value_scales = value_scales.get();
    const AttendShape shape{form_.heads, form_.kv_heads, form_.head_dim, form_.window, form_.soft_cap, form_.has_sinks ? sinks.get() : nullptr};
    const auto out = upload(std::vector<uint16_t>(tokens_.size() * static_cast<size_t>(out_stride_), poison));
    const auto partials = upload(std::vector<float>(static_cast<size_t>((step.pieces_max + tile_partials_) * form_.heads * (2 + form_.head_dim)), NAN));
    const DeviceArray<int> arrived(static_cast<size_t>(token_count * form_.kv_heads));
    const auto* queries = reinterpret_cast<const __nv_bfloat16*>(q.get());
    auto* answers = reinterpret_cast<__nv_bfloat16*>(out.get());
    for (int i = 0; i < times; i++) {
      attend_tiles(nullptr, step, shape, kv, queries, q_stride_, {partials.get(), arrived.get()}, answers, out_stride_);
      attend_pieces(nullptr, step, shape, kv, queries, q_stride_, {partials.get(), arrived.get()}, answers, out_stride_);
      merge_tiles(nullptr, step, shape, {partials.get(), arrived.get()}, answers, out_stride_);
    }
    check(cudaDeviceSynchronize(), "attending");
    for (const int count : download(arrived)) REQUIRE(count == 0, "a counter is left at ", count);
    return without_padding(download(out));
  }

  void check_right(const std::vector<uint16_t>& out, Random& random) const {
    for (size_t r = 0; r < rows_.size(); r++)
      for (int i = 0; i < std::min(tokens_checked, rows_[r].count); i++) {
        // The first tokens and the last ones, and some between.
        const int at = i < 3 ? i : i < 6 ? rows_[r].count - (i - 2) : random.between(0, rows_[r].count - 1);
        for (int h = 0; h < heads_checked; h++) check_vector(out, r, std::clamp(at, 0, rows_[r].count - 1), random.between(0, form_.heads - 1));
      }
  }

  // One row's results.
  std::vector<uint16_t> of_row(const std::vector<uint16_t>& out, size_t r) const {
    const auto begin = out.begin() + static_cast<std::ptrdiff_t>(first_token_[r]) * form_.width();
    return {begin, begin + static_cast<std::ptrdiff_t>(rows_[r].count) * form_.width()};
  }

 private:
  void add_row(size_t r) {
    const SceneRow& row = rows_[r];
    Random random(row.seed);
    std::vector<uint16_t> table(1 << 12), queries(table.size());  // drawing each value would take longer than all else
    for (uint16_t& value : table) value = bfloat_of(random.normal());
    for (uint16_t& value : queries) value = bfloat_of(random.normal() * 1.5f / std::sqrt(static_cast<float>(form_.head_dim)));
    const int start = row.context - row.count, first = static_cast<int>(tokens_.size());
    if (form_.element == KvElement::e4m3)
      fill_e4m3(r, random);
    else
      fill_bfloat16(r, random, table);
    first_token_.push_back(first);
    for (int i = 0; i < row.count; i++) {
      tokens_.push_back({1, start + i, static_cast<int32_t>(r), -1});
      for (int d = 0; d < form_.width(); d += 4) {
        const uint64_t drawn = random.next();
        for (int j = 0; j < 4; j++) q_.push_back(queries[drawn >> 16 * j & (queries.size() - 1)]);
      }
    }
    tokens_.push_back({});  // of padding
    q_.resize(q_.size() + static_cast<size_t>(form_.width()), poison);
    if (row.count > 1) {
      const int most = attend_tile_tokens({form_.heads, form_.kv_heads, form_.head_dim});
      for (int i = 0; i < row.count; i += most) add_tile(first + i, std::min(most, row.count - i));
    } else {
      const int count = (row.context - 1) / form_.chunk_tokens + 1, begun = static_cast<int>(pieces_.size());
      for (int chunk = 0; chunk < count; chunk++) pieces_.push_back({first, chunk, begun, count});
    }
  }

  void add_tile(int token, int count) {
    const int divided = form_.tile_chunk_tokens, chunks = divided == 0 ? 1 : tokens_[static_cast<size_t>(token + count - 1)].position / divided + 1;
    for (int chunk = 0; chunk < chunks; chunk++) tiles_.push_back({token, count, chunk});
    for (int i = token; divided > 0 && i < token + count; i++, tile_partials_ += chunks) tokens_[static_cast<size_t>(i)].partial = tile_partials_;
  }
  // Partial results of tiles are numbered behind those of pieces, of which there is room for 5 more.
  std::vector<StepToken> numbered_tokens() const {
    std::vector<StepToken> numbered = tokens_;
    for (StepToken& token : numbered)
      if (token.partial >= 0) token.partial += static_cast<int32_t>(pieces_.size()) + spare_pieces;
    return numbered;
  }

  template <typename Fill>
  void fill_seen(size_t r, const Fill& fill) {
    for (int position = form_.first_seen(rows_[r].context - rows_[r].count); position < rows_[r].context; position++)
      for (int head = 0; head < form_.kv_heads; head++)
        for (const bool is_value : {false, true}) fill(position, head, is_value);
  }
  void fill_bfloat16(size_t r, Random& random, const std::vector<uint16_t>& table) {
    fill_seen(r, [&](int position, int head, bool is_value) {
      uint16_t* to = tile(r, position, head, is_value) + position % tile_tokens * form_.head_dim;
      for (int d = 0; d < form_.head_dim; d += 4) {
        const uint64_t drawn = random.next();
        for (int j = 0; j < 4; j++) to[d + j] = table[drawn >> 16 * j & (table.size() - 1)];
      }
    });
  }
  // Any bytes that are numbers, but of keys with a large scale up to 2.
  void fill_e4m3(size_t r, Random& random) {
    fill_seen(r, [&](int position, int head, bool is_value) {
      auto* bytes = reinterpret_cast<uint8_t*>(tile(r, position, head, is_value)) + position % tile_tokens * form_.head_dim;
      const int mask = is_value || key_scales_[static_cast<size_t>(head)] == small_scale ? 0xff : 0xbf;
      for (int d = 0; d < form_.head_dim; d += 4) {
        const uint64_t drawn = random.next();
        for (int j = 0; j < 4; j++) {
          const auto byte = static_cast<uint8_t>(drawn >> 16 * j & static_cast<uint64_t>(mask));
          bytes[d + j] = (byte & 0x7f) == 0x7f ? 0 : byte;
        }
      }
    });
  }

  // Of the 16 positions that this is one of.
  uint16_t* tile(size_t slot, int position, int head, bool is_value) {
    const int64_t byte = static_cast<int64_t>(slot) * kv_.slot_bytes + position / kv_.page_tokens * kv_.page_bytes + (is_value ? kv_.value_offset : kv_.key_offset) +
                         head * kv_.head_bytes + position % kv_.page_tokens / tile_tokens * tile_bytes_of(form_.element, form_.head_dim);
    return memory_.data() + byte / 2;
  }
  // One position's key or value.
  std::vector<double> vector_at(size_t slot, int position, int head, bool is_value) const {
    const uint16_t* from = const_cast<Scene*>(this)->tile(slot, position, head, is_value);
    const int row = position % tile_tokens, n = form_.head_dim;
    std::vector<double> values;
    if (form_.element == KvElement::bfloat16) {
      for (int d = 0; d < n; d++) values.push_back(float_of(from[row * n + d]));
      return values;
    }
    const double scale = (is_value ? value_scales_ : key_scales_)[static_cast<size_t>(head)];
    for (int d = 0; d < n; d++) values.push_back(scale * test::e4m3_of(reinterpret_cast<const uint8_t*>(from)[row * n + d]));
    return values;
  }

  std::vector<uint16_t> padded_queries() const {
    const auto width = static_cast<size_t>(form_.width()), stride = static_cast<size_t>(q_stride_);
    std::vector<uint16_t> padded(tokens_.size() * stride, poison);
    for (size_t t = 0; t * width < q_.size(); t++)
      for (size_t i = 0; i < width; i++) {
        const uint16_t value = q_[t * width + i];
        if (form_.element == KvElement::bfloat16)
          padded[t * stride + i] = value;
        else  // heads are multiples of 16 dimensions, which change places among themselves
          padded[t * stride + static_cast<size_t>(half_place(static_cast<int>(i)))] = __half_as_ushort(__float2half_rn(float_of(value)));
      }
    return padded;
  }
  std::vector<uint16_t> without_padding(const std::vector<uint16_t>& out) const {
    std::vector<uint16_t> results;
    int written = 0, missing = 0;
    for (size_t t = 0; t < tokens_.size(); t++)
      for (int i = 0; i < out_stride_; i++) {
        const uint16_t value = out[t * static_cast<size_t>(out_stride_) + static_cast<size_t>(i)];
        const bool is_result = tokens_[t].slot >= 0 && i < form_.width();
        written += !is_result && value != poison;
        missing += is_result && !std::isfinite(float_of(value));
        if (i < form_.width()) results.push_back(value);
      }
    CHECK(written == 0, written, " values beside the results were written");
    CHECK(missing == 0, missing, " results are no numbers; ", described());
    return results;
  }

  void check_vector(const std::vector<uint16_t>& out, size_t r, int i, int head) const {
    const auto t = static_cast<size_t>(first_token_[r] + i), width = static_cast<size_t>(form_.width()), dim = static_cast<size_t>(form_.head_dim);
    const size_t at = t * width + static_cast<size_t>(head) * dim;
    const int position = tokens_[t].position, first = form_.first_seen(position), kv_head = head / form_.group();
    std::vector<double> scores, right(dim);
    double largest = form_.has_sinks ? sinks_[static_cast<size_t>(head)] : -INFINITY, errors = 0, norm = 0;
    for (int p = first; p <= position; p++) {
      double sum = 0;
      const std::vector<double> key = vector_at(r, p, kv_head, false);
      for (size_t d = 0; d < dim; d++) sum += float_of(q_[at + d]) * key[d];
      scores.push_back(form_.soft_cap == 0 ? sum : form_.soft_cap * std::tanh(sum / form_.soft_cap));
      largest = std::max(largest, scores.back());
    }
    double total = form_.has_sinks ? std::exp(sinks_[static_cast<size_t>(head)] - largest) : 0;
    for (int p = first; p <= position; p++) {
      const double weight = std::exp(scores[static_cast<size_t>(p - first)] - largest);
      total += weight;
      const std::vector<double> value = vector_at(r, p, kv_head, true);
      for (size_t d = 0; d < dim; d++) right[d] += weight * value[d];
    }
    for (size_t d = 0; d < dim; d++) {
      const double error = float_of(out[at + d]) - right[d] / total;
      errors += error * error;
      norm += right[d] / total * (right[d] / total);
    }
    const double error = errors == 0 ? 0 : std::sqrt(errors / norm);  // all that is seen may be zero
    CHECK(error <= error_max, error, " of the norm; position ", position, ", token ", i, " of ", rows_[r].count, ", head ", head, "; ", described());
  }
  std::string described() const {
    return test::sentence(form_.element == KvElement::e4m3 ? "E4M3" : "bfloat16", "; heads, KV heads, head_dim, page, chunk, window, cap, sinks ", form_.heads, ", ", form_.kv_heads, ", ", form_.head_dim, ", ", form_.page_tokens, ", ",
                          form_.chunk_tokens, ", ", form_.window, ", ", form_.soft_cap, ", ", form_.has_sinks);
  }

  const Form form_;
  const std::vector<SceneRow> rows_;
  const int64_t q_stride_, out_stride_;
  KvView kv_;
  std::vector<uint16_t> memory_, q_;  // q_: [tokens][width]
  std::vector<StepToken> tokens_;
  std::vector<AttendPiece> pieces_;
  std::vector<AttendTile> tiles_;
  std::vector<int> first_token_;  // of each row
  int tile_partials_ = 0;
  std::vector<float> sinks_, key_scales_, value_scales_;
};

constexpr int page_sizes[] = {16, 32, 80, 176, 1024}, chunk_sizes[] = {128, 128, 16, 48, 256, 1024};
constexpr std::pair<int, int> head_counts[] = {{2, 2}, {3, 1}, {8, 2}, {14, 2}, {8, 1}, {16, 1}, {24, 1}, {71, 1}};
constexpr KvElement elements[] = {KvElement::bfloat16, KvElement::e4m3};
constexpr int head_dims[] = {16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 512};

Form any_form(Random& random, std::pair<int, int> heads, int head_dim) {
  return {heads.first, heads.second, head_dim, page_sizes[random.between(0, 4)], chunk_sizes[random.between(0, 5)]};
}
std::vector<SceneRow> rows_of(Random& random, std::initializer_list<std::pair<int, int>> contexts) {
  std::vector<SceneRow> rows;
  for (const auto& [context, count] : contexts) rows.push_back({context, count, random.next()});
  return rows;
}
void check_scene(Form form, const std::vector<SceneRow>& rows, Random& random) {
  for (const KvElement element : elements) {
    form.element = element;
    Scene scene(form, rows);
    scene.check_right(scene.run(), random);
  }
}

}  // namespace

TEST("single tokens attend rightly, whatever their context, heads, widths and pages") {
  need_gpu();
  Random random;
  for (const int head_dim : head_dims)
    for (const auto& heads : head_counts)
      check_scene(any_form(random, heads, head_dim), rows_of(random, {{1, 1}, {15, 1}, {16, 1}, {17, 1}, {127, 1}, {128, 1}, {129, 1}, {1000, 1}}), random);
}

TEST("long contexts of single tokens attend rightly") {
  need_gpu();
  Random random;
  for (const int head_dim : {64, 128, 256})
    for (const int chunk_tokens : {16, 128, 1024})
      check_scene({.head_dim = head_dim, .page_tokens = page_sizes[random.between(0, 4)], .chunk_tokens = chunk_tokens}, rows_of(random, {{5000, 1}, {4096, 1}, {4097, 1}}), random);
}

TEST("several tokens of a row attend rightly") {
  need_gpu();
  Random random;
  for (const int head_dim : head_dims)
    for (const auto& heads : head_counts)
      check_scene(any_form(random, heads, head_dim), rows_of(random, {{2, 2}, {64, 64}, {65, 60}, {300, 7}, {200, 200}, {40, 3}, {1000, 130}}), random);
}

TEST("several tokens of a row attend rightly to a context that is divided among blocks") {
  need_gpu();
  Random random;
  for (const int head_dim : head_dims)
    for (const auto& heads : head_counts) {
      Form form = any_form(random, heads, head_dim);
      form.tile_chunk_tokens = 64 * random.between(1, 8);
      check_scene(form, rows_of(random, {{2, 2}, {65, 60}, {1000, 7}, {200, 200}, {900, 130}, {1, 1}, {300, 1}}), random);
    }
}

TEST("prompts of more tiles than there are multiprocessors attend rightly, from any position on") {
  need_gpu();
  Random random;
  for (const int head_dim : {64, 128})
    for (const auto& heads : {std::pair(8, 8), std::pair(32, 8), std::pair(16, 2)}) {
      Form form = any_form(random, heads, head_dim);
      if (random.chance(0.3)) form.window = random.between(1, 600);
      const int start = random.between(0, 300);
      Scene scene(form, rows_of(random, {{start + 1500, 1500}, {2100, 250}, {start + 128, 128}, {129, 129}, {700, 1}, {640, 300}}));
      scene.check_right(scene.run(3), random);
    }
}

TEST("windows, caps and sinks do what they should, in pieces and in tiles of one step") {
  need_gpu();
  Random random;
  for (const int head_dim : {32, 64, 128, 256, 512})
    for (const int window : {0, 1, 16, 40, 128, 300})
      for (const float soft_cap : {0.0f, 2.0f})
        for (const bool has_sinks : {false, true}) {
          Form form = any_form(random, head_counts[random.between(0, 7)], head_dim);
          form.window = window, form.soft_cap = soft_cap, form.has_sinks = has_sinks;
          form.tile_chunk_tokens = random.chance(0.5) ? 64 * random.between(1, 8) : 0;
          check_scene(form, rows_of(random, {{500, 1}, {33, 1}, {700, 90}, {64, 64}, {129, 1}, {1, 1}, {128, 1}}), random);
        }
}

TEST("a token's bits are the same alone, in company and again") {
  need_gpu();
  Random random;
  for (const KvElement element : elements)
    for (const int head_dim : {64, 96, 128, 256, 512})
      for (const auto& heads : head_counts) {
        Form form = any_form(random, heads, head_dim);
        form.window = random.chance(0.3) ? 200 : 0;
        form.element = element;
        std::vector<SceneRow> rows = rows_of(random, {{1000, 1}, {128, 1}, {17, 1}, {1500, 1}, {90, 40}, {333, 1}, {700, 64}});
        for (int i = 0; i < 40; i++) rows.push_back({random.between(1, 300), 1, random.next()});
        Scene together(form, rows);
        const auto all = together.run();
        for (int i = 0; i < 3; i++) CHECK(together.run(3) == all, "another run differs");
        for (size_t r = 0; r < 7; r++) {
          Scene alone(form, {rows[r]});
          CHECK(alone.of_row(alone.run(), 0) == together.of_row(all, r), "row ", r, " differs with head_dim ", head_dim, ", ", heads.first, " heads over ", heads.second);
        }
      }
}

TEST("a step without pieces and tiles writes nothing") {
  need_gpu();
  for (const KvElement element : elements)
    for (const int head_dim : {64, 128, 256, 512}) Scene({.head_dim = head_dim, .element = element}, {}).run();
}
