// Kernels over single vectors: norm, quantize, RoPE, stores into KV pages. Every set against plain double precision.
#include <algorithm>
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
void check_stores(const Kernels& kernels, test::Random& random, KvElement element) {
  const KvLayout layout{.layers = 1, .kv_heads = 1, .head_dim = 48, .element = element, .page_tokens = 32};
  std::vector<float> key = random.normals(48), value = random.normals(48);
  if (element != KvElement::int8) key[5] = 1e9f, value[7] = -1e9f;  // beyond a half: the largest stands in for it
  for (const int position : {0, 1, 15, 16, 31}) {
    const auto bytes = static_cast<size_t>(layout.head_bytes());
    const auto page = std::make_unique<uint8_t[]>(2 * bytes);
    std::memset(page.get(), 0xee, 2 * bytes);
    kernels.store_key(key.data(), layout, page.get(), position);
    kernels.store_value(value.data(), layout, page.get() + bytes, position);
    const uint8_t* key_tile = page.get() + position / 16 * layout.tile_bytes();
    const uint8_t* value_tile = key_tile + bytes;
    const auto get = [&](const uint8_t* tile, int index) {
      if (element == KvElement::float32) return reinterpret_cast<const float*>(tile)[index];
      if (element == KvElement::float16) return half_to_float(reinterpret_cast<const uint16_t*>(tile)[index]);
      return half_to_float(reinterpret_cast<const uint16_t*>(tile + 16 * 48)[position % 16]) * static_cast<float>(reinterpret_cast<const int8_t*>(tile)[index]);
    };
    size_t touched = 0;
    for (size_t i = 0; i < 2 * bytes; i++) touched += page[i] != 0xee ? 1 : 0;
    const size_t stored = 96 * static_cast<size_t>(bytes_of(element)) + (element == KvElement::int8 ? 4 : 0);
    CHECK(touched <= stored && touched >= stored - stored / 10, touched, " of ", stored);
    for (int dim = 0; dim < 48; dim++) {
      const float key_found = get(key_tile, dim * 16 + position % 16), value_found = get(value_tile, position % 16 * 48 + dim);
      const auto is_near = [&](float found, const std::vector<float>& x) {
        if (element == KvElement::float32) return found == x[static_cast<size_t>(dim)];
        if (element == KvElement::float16) return found == half_to_float(float_to_half(std::min(65504.0f, std::max(-65504.0f, x[static_cast<size_t>(dim)]))));
        const float largest = std::fabs(*std::max_element(x.begin(), x.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); }));
        return std::fabs(found - x[static_cast<size_t>(dim)]) <= largest / 127 * 0.51f;
      };
      CHECK(is_near(key_found, key), "key ", dim, " at ", position, ": ", key[static_cast<size_t>(dim)], " became ", key_found);
      CHECK(is_near(value_found, value), "value ", dim, " at ", position, ": ", value[static_cast<size_t>(dim)], " became ", value_found);
    }
  }
}

void check_all(const Kernels& kernels) {
  test::Random random;
  check_norm(kernels, random);
  check_quantize(kernels, random);
  check_rope(kernels, random);
  for (const KvElement element : {KvElement::float16, KvElement::float32, KvElement::int8}) check_stores(kernels, random, element);
}

}  // namespace

TEST("the reference norms, quantizes, turns and stores as double precision says") { check_all(reference_kernels); }
TEST("AVX2 norms, quantizes, turns and stores as double precision says") { check_all(test::kernels_or_skip(KernelSet::avx2)); }
TEST("AVX-512 norms, quantizes, turns and stores as double precision says") { check_all(test::kernels_or_skip(KernelSet::avx512)); }

// Whatever a model computes, its bytes in memory are numbers, so that who gives them no weight is not reached by them.
TEST("keys and values that no byte can hold are stored as the nearest numbers, the same by every set") {
  test::Random random;
  const KvLayout layout{.layers = 1, .kv_heads = 1, .head_dim = 16, .element = KvElement::int8, .page_tokens = 16};
  const auto bytes = static_cast<size_t>(layout.head_bytes());
  for (int turn = 0; turn < 200; turn++) {
    std::vector<float> x = random.normals(16);
    const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, 1e-7f, 1e-30f, 0};
    const float size = odd[random.between(3, 6)];
    for (float& value : x) value = random.chance(0.2) ? odd[random.between(0, 6)] : value * (random.chance(0.5) ? 1 : size);
    std::vector<uint8_t> right(bytes), found(bytes);
    reference_kernels.store_key(x.data(), layout, right.data(), 3);
    reference_kernels.store_value(x.data(), layout, right.data(), 5);
    CHECK(std::isfinite(half_to_float(reinterpret_cast<const uint16_t*>(right.data() + 256)[3])), "turn ", turn);
    for (const KernelSet set : {KernelSet::avx2, KernelSet::avx512}) {
      const Kernels* kernels = kernels_of(set, inspect_machine());
      if (kernels == nullptr) continue;
      std::fill(found.begin(), found.end(), uint8_t{0});
      kernels->store_key(x.data(), layout, found.data(), 3);
      kernels->store_value(x.data(), layout, found.data(), 5);
      CHECK(found == right, kernels->name, ", turn ", turn);
    }
  }
}

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
