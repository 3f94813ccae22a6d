// The kernels for CPUs with AVX2, FMA and F16C, eight lanes at a time.
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "simd/activate.h"
#include "simd/attend.h"
#include "simd/avx2_lanes.h"
#include "simd/matmul.h"

namespace millrace {
namespace {

void norm(const float* x, const float* weight, float epsilon, int n, float* y) {
  __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
  for (int i = 0; i < n; i += 16) {
    const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
    low = _mm256_fmadd_ps(a, a, low);
    high = _mm256_fmadd_ps(b, b, high);
  }
  const float mean = sum_of_8(_mm256_add_ps(low, high)) / static_cast<float>(n);
  const __m256 scale = _mm256_set1_ps(1 / std::sqrt(mean + epsilon));
  for (int i = 0; i < n; i += 8)
    _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), scale), _mm256_loadu_ps(weight + i)));
}

void layer_norm(const float* x, const float* weight, const float* bias, float epsilon, int n, float* y) {
  __m256 low = _mm256_setzero_ps(), high = low;
  for (int i = 0; i < n; i += 16) {
    low = _mm256_add_ps(low, _mm256_loadu_ps(x + i));
    high = _mm256_add_ps(high, _mm256_loadu_ps(x + i + 8));
  }
  const __m256 mean = _mm256_set1_ps(sum_of_8(_mm256_add_ps(low, high)) / static_cast<float>(n));
  low = high = _mm256_setzero_ps();
  for (int i = 0; i < n; i += 16) {
    const __m256 a = _mm256_sub_ps(_mm256_loadu_ps(x + i), mean), b = _mm256_sub_ps(_mm256_loadu_ps(x + i + 8), mean);
    low = _mm256_fmadd_ps(a, a, low);
    high = _mm256_fmadd_ps(b, b, high);
  }
  const float variance = sum_of_8(_mm256_add_ps(low, high)) / static_cast<float>(n);
  const __m256 scale = _mm256_set1_ps(1 / std::sqrt(variance + epsilon));
  for (int i = 0; i < n; i += 8) {
    const __m256 unit = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), mean), scale);
    _mm256_storeu_ps(y + i, _mm256_fmadd_ps(unit, _mm256_loadu_ps(weight + i), _mm256_loadu_ps(bias + i)));
  }
}

void add_scaled(float* y, const float* x, float scale, int n) {
  const __m256 factor = _mm256_set1_ps(scale);
  for (int i = 0; i < n; i += 8) _mm256_storeu_ps(y + i, _mm256_fmadd_ps(factor, _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
}

void quantize(const float* x, int n, QuantizedRow out) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // what the two in-lane packs leave undone
  for (int block = 0; block < n / block_values; block++) {
    __m256 v[4];
    __m256 largest = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
      v[i] = _mm256_loadu_ps(x + block * block_values + 8 * i);
      largest = _mm256_max_ps(_mm256_and_ps(v[i], magnitude), largest);  // in this order it passes over what is no number
    }
    const float found = max_of_8(largest), top = found < quantized_magnitude_min ? 0 : found;
    const __m256 inverse = _mm256_set1_ps(top > 0 ? 127 / top : 0);
    __m256i q[4];
    for (int i = 0; i < 4; i++) {
      const __m256 scaled = _mm256_mul_ps(v[i], inverse);
      q[i] = _mm256_cvtps_epi32(_mm256_and_ps(scaled, _mm256_cmp_ps(scaled, scaled, _CMP_ORD_Q)));
    }
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.quants + block * block_values), _mm256_permutevar8x32_epi32(bytes, order));
    const float total = sum_of_8(_mm256_cvtepi32_ps(sum));  // at most 32 * 127: exact
    out.scales[block] = top / 127;
    out.sums[block] = out.scales[block] * total;
    out.totals[block] = static_cast<int32_t>(total);
  }
}

void rope(float* x, const float* turns, int pairs, int head_dim, float scale) {
  int i = 0;
  for (; i + 4 <= pairs; i += 4) {
    const __m256 v = _mm256_loadu_ps(x + 2 * i), turn = _mm256_loadu_ps(turns + 2 * i);
    const __m256 cosine = _mm256_moveldup_ps(turn), sine = _mm256_movehdup_ps(turn);
    const __m256 crossed = _mm256_mul_ps(_mm256_permute_ps(v, 0xb1), sine);
    _mm256_storeu_ps(x + 2 * i, _mm256_fmaddsub_ps(v, cosine, crossed));
  }
  for (; i < pairs; i++) {
    const float even = x[2 * i], odd = x[2 * i + 1];
    x[2 * i] = even * turns[2 * i] - odd * turns[2 * i + 1];
    x[2 * i + 1] = even * turns[2 * i + 1] + odd * turns[2 * i];
  }
  for (int d = 0; d < head_dim; d += 8) _mm256_storeu_ps(x + d, _mm256_mul_ps(_mm256_loadu_ps(x + d), _mm256_set1_ps(scale)));
}

void rope_halves(float* x, const float* turns, int pairs, int head_dim, float scale) {
  int i = 0;
  for (; i + 8 <= pairs; i += 8) {
    const __m256 low = _mm256_loadu_ps(x + i), high = _mm256_loadu_ps(x + pairs + i);
    const __m256 cosine = _mm256_loadu_ps(turns + i), sine = _mm256_loadu_ps(turns + pairs + i);
    _mm256_storeu_ps(x + i, _mm256_fmsub_ps(low, cosine, _mm256_mul_ps(high, sine)));
    _mm256_storeu_ps(x + pairs + i, _mm256_fmadd_ps(high, cosine, _mm256_mul_ps(low, sine)));
  }
  for (; i < pairs; i++) {
    const float low = x[i], high = x[pairs + i];
    x[i] = low * turns[i] - high * turns[pairs + i];
    x[pairs + i] = high * turns[i] + low * turns[pairs + i];
  }
  for (int d = 0; d < head_dim; d += 8) _mm256_storeu_ps(x + d, _mm256_mul_ps(_mm256_loadu_ps(x + d), _mm256_set1_ps(scale)));
}

// Eight halves, saturated.
__m128i to_half(__m256 v) {
  const __m256 top = _mm256_set1_ps(65504);
  return _mm256_cvtps_ph(_mm256_min_ps(_mm256_max_ps(v, _mm256_sub_ps(_mm256_setzero_ps(), top)), top), _MM_FROUND_TO_NEAREST_INT);
}

// One token's values as bytes, eight at a time; the scale puts the largest magnitude at 127.
struct TokenBytes {
  uint16_t scale;
  __m256 inverse;

  TokenBytes(const float* x, int n) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 largest = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8) largest = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(x + i), magnitude), largest);
    scale = float_to_half(std::min(max_of_8(largest) / 127, 65504.0f));
    inverse = _mm256_set1_ps(scale == 0 ? 0 : 1 / half_to_float(scale));
  }
  __m128i of(const float* x) const {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x), inverse), most = _mm256_set1_ps(127), least = _mm256_set1_ps(-127);
    const __m256 number = _mm256_and_ps(scaled, _mm256_cmp_ps(scaled, scaled, _CMP_ORD_Q));
    const __m256i whole = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(number, least), most));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    return _mm_packs_epi16(words, words);
  }
};

// The tile of the token at `position`, and the place of its scale.
uint8_t* tile_of(const KvLayout& layout, uint8_t* page_head, int position) { return page_head + position / tile_tokens * layout.tile_bytes(); }
uint16_t* scale_of(const KvLayout& layout, uint8_t* tile, int position) {
  return reinterpret_cast<uint16_t*>(tile + tile_tokens * layout.head_dim) + position % tile_tokens;
}

// Every 16th of a tile's elements, from the first on.
template <typename Element>
void scatter(const Element* values, int count, Element* to) {
  for (int i = 0; i < count; i++) to[i * tile_tokens] = values[i];
}

void store_key(const float* key, const KvLayout& layout, uint8_t* page_head, int position) {
  uint8_t* tile = tile_of(layout, page_head, position);
  const int token = position % tile_tokens;
  if (layout.element == KvElement::float32) return scatter(key, layout.head_dim, reinterpret_cast<float*>(tile) + token);
  if (layout.element == KvElement::float16) {
    for (int dim = 0; dim < layout.head_dim; dim += 8) {
      alignas(16) uint16_t halves[8];
      _mm_store_si128(reinterpret_cast<__m128i*>(halves), to_half(_mm256_loadu_ps(key + dim)));
      scatter(halves, 8, reinterpret_cast<uint16_t*>(tile) + dim * tile_tokens + token);
    }
    return;
  }
  const TokenBytes bytes(key, layout.head_dim);
  *scale_of(layout, tile, position) = bytes.scale;
  for (int dim = 0; dim < layout.head_dim; dim += 8) {
    alignas(16) int8_t quants[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(quants), bytes.of(key + dim));
    scatter(quants, 8, reinterpret_cast<int8_t*>(tile) + dim * tile_tokens + token);
  }
}

void store_value(const float* value, const KvLayout& layout, uint8_t* page_head, int position) {
  uint8_t* tile = tile_of(layout, page_head, position);
  uint8_t* to = tile + int64_t{position % tile_tokens} * layout.head_dim * bytes_of(layout.element);
  if (layout.element == KvElement::float32) {
    std::copy(value, value + layout.head_dim, reinterpret_cast<float*>(to));
  } else if (layout.element == KvElement::float16) {
    for (int dim = 0; dim < layout.head_dim; dim += 8) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * dim), to_half(_mm256_loadu_ps(value + dim)));
  } else {
    const TokenBytes bytes(value, layout.head_dim);
    *scale_of(layout, tile, position) = bytes.scale;
    for (int dim = 0; dim < layout.head_dim; dim += 8) _mm_storel_epi64(reinterpret_cast<__m128i*>(to + dim), bytes.of(value + dim));
  }
}

void merge(float* into, const float* part, int head_dim) {
  if (part[1] == 0) return;
  const float largest = into[1] != 0 && into[0] > part[0] ? into[0] : part[0];
  alignas(32) float factors[8];
  _mm256_store_ps(factors, exponential<Avx2>(_mm256_setr_ps(into[0] - largest, part[0] - largest, 0, 0, 0, 0, 0, 0)));
  const __m256 keep = _mm256_set1_ps(into[1] == 0 ? 0 : factors[0]), take = _mm256_set1_ps(factors[1]);
  into[1] = into[1] * _mm256_cvtss_f32(keep) + part[1] * factors[1];
  into[0] = largest;
  for (int dim = 2; dim < 2 + head_dim; dim += 8)
    _mm256_storeu_ps(into + dim, _mm256_fmadd_ps(_mm256_loadu_ps(part + dim), take, _mm256_mul_ps(_mm256_loadu_ps(into + dim), keep)));
}

void finish(const float* partial, int head_dim, float* out) {
  const __m256 sum = _mm256_set1_ps(partial[1]);
  for (int dim = 0; dim < head_dim; dim += 8) _mm256_storeu_ps(out + dim, _mm256_div_ps(_mm256_loadu_ps(partial + 2 + dim), sum));
}

}  // namespace

const Kernels avx2_kernels = {.name = "avx2",
                              .norm = norm,
                              .layer_norm = layer_norm,
                              .add_scaled = add_scaled,
                              .gate = gate<Avx2>,
                              .soft_cap = soft_cap<Avx2>,
                              .quantize = quantize,
                              .matmul = Matmul<Avx2>::matmul<false>,
                              .matmul_add = Matmul<Avx2>::matmul<true>,
                              .matmul_gated = Matmul<Avx2>::gated,
                              .rope = rope,
                              .rope_halves = rope_halves,
                              .store_key = store_key,
                              .store_value = store_value,
                              .attend = attend<Avx2>,
                              .merge = merge,
                              .finish = finish};

}  // namespace millrace
