// Attention over KV pages: every set against a softmax in double precision, and each query's bits whatever runs beside it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "support/kernel_sets.h"

using namespace millrace;

namespace {

constexpr int partition_tokens = 256;
constexpr KvElement every_element[] = {KvElement::float16, KvElement::float32, KvElement::int8};

// What memory keeps of one token's values.
void round(float* x, int n, KvElement element) {
  float largest = 0;
  for (int i = 0; i < n; i++) largest = std::max(largest, std::fabs(x[i]));
  const float scale = half_to_float(float_to_half(largest / 127));
  for (int i = 0; i < n && element != KvElement::float32; i++)
    x[i] = element == KvElement::float16 ? half_to_float(float_to_half(x[i])) : scale * std::nearbyint(x[i] * (1 / scale));
}

// One sequence's pages, filled with random keys and values up to `tokens`; behind them lies what must not matter.
struct Pages {
  KvLayout layout;
  int tokens;
  std::vector<float> keys, values;  // [tokens][head_dim], of one layer and head
  std::unique_ptr<uint8_t[]> bytes;
  static constexpr int layer = 1, kv_head = 1;

  Pages(test::Random& random, int head_dim, KvElement element, int page_tokens, int tokens_of) : tokens(tokens_of) {
    layout = {.layers = 2, .kv_heads = 2, .head_dim = head_dim, .element = element, .page_tokens = page_tokens};
    keys = random.normals(int64_t{tokens} * head_dim);
    values = random.normals(int64_t{tokens} * head_dim);
    layout.page_bytes = page_tokens * layout.token_bytes() + 64;
    const auto size = static_cast<size_t>(layout.page_bytes * layout.pages_for(tokens));
    bytes = std::make_unique<uint8_t[]>(size);
    std::memset(bytes.get(), 0xff, size);  // not a number, as half and as float
    for (int t = 0; t < tokens; t++) {
      uint8_t* page = bytes.get() + t / page_tokens * layout.page_bytes;
      float* key = &keys[static_cast<size_t>(t * head_dim)];
      float* value = &values[static_cast<size_t>(t * head_dim)];
      reference_kernels.store_key(key, layout, page + layout.offset(layer, false, kv_head), t % page_tokens);
      reference_kernels.store_value(value, layout, page + layout.offset(layer, true, kv_head), t % page_tokens);
      round(key, head_dim, element);
      round(value, head_dim, element);
    }
  }
};

struct Queries {
  int head_dim;
  std::vector<std::vector<float>> vectors;
  std::vector<int> first, visible;
  float soft_cap = 0;

  // Every other set of queries looks through windows, and every other one has its scores capped.
  Queries(test::Random& random, int count, int head_dim_of, int tokens) : head_dim(head_dim_of) {
    const bool windows = random.between(0, 1) == 1;
    if (random.between(0, 1) == 1) soft_cap = 3;
    for (int n = 0; n < count; n++) {
      vectors.push_back(random.normals(head_dim));
      for (float& value : vectors.back()) value *= 2 / std::sqrt(static_cast<float>(head_dim));
      visible.push_back(random.between(1, tokens));
    }
    visible.back() = tokens;
    for (const int end : visible) first.push_back(windows ? random.between(0, end - 1) : 0);
  }
};

// All partitions one after another, merged in order and finished, as the backend does it. [query][head_dim]
std::vector<std::vector<float>> attend(const Kernels& kernels, const Pages& pages, const Queries& queries, const std::vector<int>& chosen) {
  const size_t size = 2 + static_cast<size_t>(queries.head_dim);
  std::vector<std::vector<float>> parts(chosen.size(), std::vector<float>(size)), merged = parts, out;
  AttendTask task = {};
  task.count = static_cast<int>(chosen.size());
  task.layout = &pages.layout;
  task.base = pages.bytes.get();
  task.layer = Pages::layer;
  task.kv_head = Pages::kv_head;
  task.soft_cap = queries.soft_cap;
  for (size_t n = 0; n < chosen.size(); n++) {
    task.queries[n] = queries.vectors[static_cast<size_t>(chosen[n])].data();
    task.first[n] = queries.first[static_cast<size_t>(chosen[n])];
    task.visible[n] = queries.visible[static_cast<size_t>(chosen[n])];
    task.partial[n] = parts[n].data();
  }
  for (task.begin = 0; task.begin < pages.tokens; task.begin += partition_tokens) {
    task.end = task.begin + partition_tokens;
    kernels.attend(task);
    for (size_t n = 0; n < chosen.size(); n++) kernels.merge(merged[n].data(), parts[n].data(), queries.head_dim);
  }
  for (const auto& each : merged) {
    out.emplace_back(static_cast<size_t>(queries.head_dim));
    kernels.finish(each.data(), queries.head_dim, out.back().data());
  }
  return out;
}

std::vector<double> exact(const Pages& pages, const Queries& queries, size_t n) {
  const std::vector<float>& query = queries.vectors[n];
  const size_t head_dim = query.size(), first = static_cast<size_t>(queries.first[n]);
  std::vector<double> weights, out(head_dim);
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (size_t t = first; t < static_cast<size_t>(queries.visible[n]); t++) {
    double score = 0;
    for (size_t d = 0; d < head_dim; d++) score += double{query[d]} * pages.keys[t * head_dim + d];
    if (queries.soft_cap != 0) score = queries.soft_cap * std::tanh(score / queries.soft_cap);
    weights.push_back(score);
    largest = std::max(largest, score);
  }
  for (double& weight : weights) sum += weight = std::exp(weight - largest);
  for (size_t t = 0; t < weights.size(); t++)
    for (size_t d = 0; d < head_dim; d++) out[d] += weights[t] / sum * pages.values[(first + t) * head_dim + d];
  return out;
}

std::vector<int> all_of(const Queries& queries) {
  std::vector<int> chosen;
  for (size_t n = 0; n < queries.vectors.size(); n++) chosen.push_back(static_cast<int>(n));
  return chosen;
}

void check_exact(const Kernels& kernels) {
  test::Random random;
  for (const KvElement element : every_element)
    for (const int head_dim : {16, 64, 128})
      for (const int tokens : {1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 700}) {
        const Pages pages(random, head_dim, element, 16 * random.between(1, 5), tokens);
        const Queries queries(random, random.between(1, queries_max), head_dim, tokens);
        const auto out = attend(kernels, pages, queries, all_of(queries));
        for (size_t n = 0; n < out.size(); n++) {
          const std::vector<double> right = exact(pages, queries, n);
          for (size_t d = 0; d < right.size(); d++)
            CHECK(std::fabs(out[n][d] - right[d]) <= 1e-5, head_dim, " dimensions, query ", n, " sees ", queries.first[n], " to ", queries.visible[n], " of ", tokens, ": ", out[n][d],
                  ", not ", right[d]);
        }
      }
}

// A query's bits depend on its own past alone: not on who shares its keys, nor on what lies behind what it sees.
void check_alone(const Kernels& kernels) {
  test::Random random;
  for (const KvElement element : every_element)
    for (const int tokens : {16, 100, 300}) {
      const Pages pages(random, 32, element, 48, tokens);
      const Queries queries(random, queries_max, 32, tokens);
      const auto together = attend(kernels, pages, queries, all_of(queries));
      for (int n = 0; n < queries_max; n++) {
        CHECK(attend(kernels, pages, queries, {n})[0] == together[static_cast<size_t>(n)], "query ", n, " alone");
        CHECK(attend(kernels, pages, queries, {queries_max - 1 - n, n})[1] == together[static_cast<size_t>(n)], "query ", n, " with another");
      }
    }
}

}  // namespace

TEST("the reference attends as double precision does, over pages, masks and partitions") { check_exact(reference_kernels); }
TEST("AVX2 attends as double precision does, over pages, masks and partitions") { check_exact(test::kernels_or_skip(KernelSet::avx2)); }
TEST("AVX-512 attends as double precision does, over pages, masks and partitions") { check_exact(test::kernels_or_skip(KernelSet::avx512)); }

TEST("a query's bits from the reference depend on its own past alone") { check_alone(reference_kernels); }
TEST("a query's bits from AVX2 depend on its own past alone") { check_alone(test::kernels_or_skip(KernelSet::avx2)); }
TEST("a query's bits from AVX-512 depend on its own past alone") { check_alone(test::kernels_or_skip(KernelSet::avx512)); }

TEST("AVX2 and AVX-512 attend to the same bits") {
  test::Random random;
  const Kernels &narrow = test::kernels_or_skip(KernelSet::avx2), &wide = test::kernels_or_skip(KernelSet::avx512);
  for (int count = 1; count <= queries_max; count++)
    for (const KvElement element : every_element) {
      const Pages pages(random, 64, element, 32, 300);
      const Queries queries(random, count, 64, 300);
      CHECK(attend(narrow, pages, queries, all_of(queries)) == attend(wide, pages, queries, all_of(queries)), count, " queries");
    }
}

// Tiles that no query sees may be out of memory: they are not even read.
TEST("what lies before every window is not read") {
  for (const KernelSet set : {KernelSet::reference, KernelSet::avx2, KernelSet::avx512}) {
    const Kernels* kernels = kernels_of(set, inspect_machine());
    if (kernels == nullptr) continue;
    test::Random random;
    Pages pages(random, 16, KvElement::float32, 16, 400);
    Queries queries(random, 2, 16, 400);
    queries.visible = {390, 400};
    queries.first = {350, 360};
    const auto before = attend(*kernels, pages, queries, {0, 1});
    std::memset(pages.bytes.get(), 0xff, static_cast<size_t>(350 / 16 * pages.layout.page_bytes));
    CHECK(attend(*kernels, pages, queries, {0, 1}) == before, kernels->name);
  }
}

TEST("scores far apart weigh one value and nothing else") {
  for (const KernelSet set : {KernelSet::reference, KernelSet::avx2, KernelSet::avx512}) {
    const Kernels* kernels = kernels_of(set, inspect_machine());
    if (kernels == nullptr) continue;
    test::Random random;
    const Pages pages(random, 16, KvElement::float32, 32, 200);
    Queries queries(random, 2, 16, 200);
    queries.first = {0, 0};
    queries.visible = {200, 200};
    queries.soft_cap = 0;
    for (size_t d = 0; d < 16; d++) queries.vectors[0][d] = 1000 * pages.keys[150 * 16 + d];
    for (size_t d = 0; d < 16; d++) queries.vectors[1][d] = -1000 * pages.keys[3 * 16 + d];
    const auto out = attend(*kernels, pages, queries, {0, 1});
    for (size_t n = 0; n < 2; n++) {
      const std::vector<double> right = exact(pages, queries, n);
      for (size_t d = 0; d < 16; d++) CHECK(std::fabs(out[n][d] - right[d]) <= 1e-3, kernels->name, ": ", out[n][d], ", not ", right[d]);
    }
  }
}
