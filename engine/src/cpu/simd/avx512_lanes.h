// Sixteen float lanes and the integer dot products of AVX-512 with VNNI. Only for files compiled for them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "../pack.h"

namespace millrace {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  static constexpr int width = 16;
  static constexpr int tokens_a_tile = 8;

  static F zero() { return _mm512_setzero_ps(); }
  static F all(float value) { return _mm512_set1_ps(value); }
  static F load(const float* from) { return _mm512_loadu_ps(from); }
  static F load_half(const uint16_t* from) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
  static F load_bfloat(const uint16_t* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static F load_bytes(const int8_t* from) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))); }
  static void store(float* to, F value) { _mm512_storeu_ps(to, value); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F round(F value) { return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F from_int(I value) { return _mm512_cvtepi32_ps(value); }
  static F power_of_two(F n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23)); }
  static F where_at_least(F value, F x, F bound) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bound, _CMP_GE_OQ), value); }

  static I broadcast4(const int8_t* quants) {
    int32_t four;
    std::memcpy(&four, quants, 4);
    return _mm512_set1_epi32(four);
  }

  struct Nibbles {
    I group[8];
  };
  static Nibbles unpack(const BandQ4& band, int) {
    const I low = _mm512_set1_epi8(15);
    Nibbles nibbles;
    for (int j = 0; j < 4; j++) {
      const I pairs = _mm512_loadu_si512(band.nibbles[j]);
      nibbles.group[j] = _mm512_and_si512(pairs, low);
      nibbles.group[j + 4] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low);
    }
    return nibbles;
  }
  // Two chains, since each dot product waits for the one before it in its chain.
  static I dot(const Nibbles& nibbles, const int8_t* quants) {
    I first = _mm512_setzero_si512(), second = _mm512_setzero_si512();
    for (int j = 0; j < 4; j++) {
      first = _mm512_dpbusd_epi32(first, nibbles.group[j], broadcast4(quants + 4 * j));
      second = _mm512_dpbusd_epi32(second, nibbles.group[j + 4], broadcast4(quants + 16 + 4 * j));
    }
    return _mm512_add_epi32(first, second);
  }

  // The instruction wants an unsigned factor: weight + 128, whose surplus of 128 * total is taken off beforehand.
  template <int T>
  static void dot_q8(const BandQ8& band, int, const int8_t* const* quants, const int32_t* totals, I* dots) {
    const I offset = _mm512_set1_epi8(static_cast<char>(0x80));
    for (int t = 0; t < T; t++) dots[t] = _mm512_set1_epi32(-128 * totals[t]);
    for (int j = 0; j < 8; j++) {
      const I weights = _mm512_xor_si512(_mm512_loadu_si512(band.quants[j]), offset);
      for (int t = 0; t < T; t++) dots[t] = _mm512_dpbusd_epi32(dots[t], weights, broadcast4(quants[t] + 4 * j));
    }
  }
};

}  // namespace
}  // namespace millrace
