// Kernels over single vectors: norm, quantize, RoPE, stores into KV pages. Every set against plain double precision.
#include <cmath>
#include <cstring>

#include "support/kernel_sets.h"

using namespace millrace;

namespace {

void check_norm(const Kernels& kernels, test::Random& random) {
  for (const int n : {16, 48, 64, 576, 4096}) {
    const std::vector<float> x = random.normals(n), weight = random.normals(n);
    std::vector<float> y(static_cast<size_t>(n));
    kernels.norm(x.data(), weight.data(), 1e-5f, n, y.data());
    double sum = 0;
    for (const float value : x) sum += double{value} * value;
    const double scale = 1 / std::sqrt(sum / n + 1e-5f);
    for (size_t i = 0; i < x.size(); i++) CHECK(std::fabs(y[i] - x[i] * scale * weight[i]) <= 2e-6 * std::fabs(x[i] * scale * weight[i]), n, " values, at ", i);
  }
}

struct Quantized {
  std::vector<int8_t> quants;
  std::vector<float> scales, sums;
  std::vector<int32_t> totals;
};

Quantized quantize(const Kernels& kernels, const std::vector<float>& x) {
  Quantized out{std::vector<int8_t>(x.size()), std::vector<float>(x.size() / 32), std::vector<float>(x.size() / 32), std::vector<int32_t>(x.size() / 32)};
  kernels.quantize(x.data(), static_cast<int>(x.size()), {out.quants.data(), out.scales.data(), out.sums.data(), out.totals.data()});
  return out;
}

// Blocks of all magnitudes that a float has, with zeros and equal values among them.
std::vector<float> awkward_blocks(test::Random& random) {
  std::vector<float> x;
  for (int exponent = -140; exponent <= 120; exponent += 4)
    for (int i = 0; i < 32; i++) x.push_back(random.chance(0.1) ? 0 : std::ldexp(random.normal(), exponent));
  x.insert(x.end(), 32, 0.0f);
  x.insert(x.end(), 32, -1.0f);
  return x;
}

void check_quantize(const Kernels& kernels, test::Random& random) {
  const std::vector<float> x = awkward_blocks(random);
  const Quantized out = quantize(kernels, x);
  for (size_t block = 0; block < x.size() / 32; block++) {
    float largest = 0;
    int total = 0;
    for (size_t i = 32 * block; i < 32 * (block + 1); i++) {
      largest = std::max(largest, std::fabs(x[i]));
      total += out.quants[i];
      const double step = out.scales[block];
      CHECK(std::fabs(step * out.quants[i] - x[i]) <= 0.5001 * step + quantized_magnitude_min, x[i], " became ", int{out.quants[i]}, " times ", step);
    }
    CHECK(std::fabs(out.scales[block] - largest / 127) <= largest * 1e-7 + quantized_magnitude_min);
    CHECK_EQUAL(out.totals[block], total);
    CHECK(std::fabs(out.sums[block] - double{out.scales[block]} * total) <= std::fabs(out.sums[block]) * 1e-6);
  }
}

void check_rope(const Kernels& kernels, test::Random& random) {
  for (const int head_dim : {16, 64, 128})
    for (const int pairs : {1, 3, 8, head_dim / 2}) {
      std::vector<float> x = random.normals(head_dim), turns;
      for (int i = 0; i < pairs; i++) {
        const double angle = 100 * random.uniform();
        turns.push_back(static_cast<float>(std::cos(angle)));
        turns.push_back(static_cast<float>(std::sin(angle)));
      }
      std::vector<double> right(x.begin(), x.end());
      for (size_t i = 0; i < 2 * static_cast<size_t>(pairs); i += 2) {
        right[i] = double{x[i]} * turns[i] - double{x[i + 1]} * turns[i + 1];
        right[i + 1] = double{x[i]} * turns[i + 1] + double{x[i + 1]} * turns[i];
      }
      kernels.rope(x.data(), turns.data(), pairs, head_dim, 0.25f);
      for (size_t i = 0; i < x.size(); i++) CHECK(std::fabs(x[i] - 0.25 * right[i]) <= 1e-6, head_dim, " dimensions, ", pairs, " pairs, at ", i, ": ", x[i]);
    }
}

// What the layout says of where a value lies, and that nothing else is touched.
void check_stores(const Kernels& kernels, test::Random& random, int element_bytes) {
  const KvLayout layout{.layers = 1, .kv_heads = 1, .head_dim = 48, .element_bytes = element_bytes, .page_tokens = 32};
  std::vector<float> key = random.normals(48), value = random.normals(48);
  key[5] = 1e9f;  // beyond a half: the largest stands in for it
  value[7] = -1e9f;
  for (const int position : {0, 1, 15, 16, 31}) {
    const auto bytes = static_cast<size_t>(layout.head_bytes());
    const auto page = std::make_unique<uint8_t[]>(2 * bytes);
    std::memset(page.get(), 0xee, 2 * bytes);
    kernels.store_key(key.data(), layout, page.get(), position);
    kernels.store_value(value.data(), layout, page.get() + bytes, position);
    const auto get = [&](size_t index) {
      return element_bytes == 4 ? reinterpret_cast<const float*>(page.get())[index] : half_to_float(reinterpret_cast<const uint16_t*>(page.get())[index]);
    };
    const auto stored = [&](float x) { return element_bytes == 4 ? x : half_to_float(float_to_half(std::min(65504.0f, std::max(-65504.0f, x)))); };
    int touched = 0;
    for (size_t i = 0; i < 2 * bytes; i += static_cast<size_t>(element_bytes)) touched += page[i] != 0xee || page[i + 1] != 0xee ? 1 : 0;
    CHECK(touched <= 96 && touched >= 90, touched);
    for (int dim = 0; dim < 48; dim++) {
      CHECK_EQUAL(get(static_cast<size_t>((position / 16 * 48 + dim) * 16 + position % 16)), stored(key[static_cast<size_t>(dim)]));
      CHECK_EQUAL(get(static_cast<size_t>(32 * 48 + position * 48 + dim)), stored(value[static_cast<size_t>(dim)]));
    }
  }
}

void check_all(const Kernels& kernels) {
  test::Random random;
  check_norm(kernels, random);
  check_quantize(kernels, random);
  check_rope(kernels, random);
  check_stores(kernels, random, 2);
  check_stores(kernels, random, 4);
}

}  // namespace

TEST("the reference norms, quantizes, turns and stores as double precision says") { check_all(reference_kernels); }
TEST("AVX2 norms, quantizes, turns and stores as double precision says") { check_all(test::kernels_or_skip(KernelSet::avx2)); }
TEST("AVX-512 norms, quantizes, turns and stores as double precision says") { check_all(test::kernels_or_skip(KernelSet::avx512)); }

// A damaged model's activations. Whatever comes of them, no sum may leave its range: the wide kernels multiply totals by 128.
TEST("what is no number is quantized to bytes and totals like any other") {
  test::Random random;
  for (const KernelSet set : {KernelSet::reference, KernelSet::avx2, KernelSet::avx512}) {
    const Kernels* kernels = kernels_of(set, inspect_machine());
    if (kernels == nullptr) continue;
    std::vector<float> x;
    for (int i = 0; i < 32 * 200; i++) {
      const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, 3e38f, 1e30f};
      x.push_back(random.chance(0.1) ? odd[random.between(0, 5)] : random.normal());
    }
    const Quantized out = quantize(*kernels, x);
    for (size_t block = 0; block < out.totals.size(); block++) {
      int total = 0;
      for (size_t i = 32 * block; i < 32 * (block + 1); i++) {
        total += out.quants[i];
        CHECK(out.quants[i] >= -127 && (!std::isnan(x[i]) || out.quants[i] == 0), x[i], " became ", int{out.quants[i]});
      }
      CHECK_EQUAL(out.totals[block], total);
    }
  }
}

TEST("AVX2 quantizes to the reference's own bits") {
  test::Random random;
  const std::vector<float> x = awkward_blocks(random);
  const Quantized plain = quantize(reference_kernels, x), fast = quantize(test::kernels_or_skip(KernelSet::avx2), x);
  CHECK(plain.quants == fast.quants);
  CHECK(plain.scales == fast.scales);
  CHECK(plain.sums == fast.sums);
  CHECK(plain.totals == fast.totals);
}
