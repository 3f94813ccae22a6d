// Eight float lanes and the integer dot products of AVX2. Only for files compiled with -mavx2 -mfma -mf16c.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "../pack.h"

namespace millrace {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  static constexpr int width = 8;
  static constexpr int tokens_a_tile = 4;

  static F zero() { return _mm256_setzero_ps(); }
  static F all(float value) { return _mm256_set1_ps(value); }
  static F load(const float* from) { return _mm256_loadu_ps(from); }
  static F load_half(const uint16_t* from) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
  static F load_bfloat(const uint16_t* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static F load_bytes(const int8_t* from) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))); }
  static void store(float* to, F value) { _mm256_storeu_ps(to, value); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F round(F value) { return _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F from_int(I value) { return _mm256_cvtepi32_ps(value); }
  // 2^n for whole n from -126 to 127.
  static F power_of_two(F n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)); }
  // value where x >= bound, else 0.
  static F where_at_least(F value, F x, F bound) { return _mm256_and_ps(value, _mm256_cmp_ps(x, bound, _CMP_GE_OQ)); }

  static I broadcast4(const int8_t* quants) {
    int32_t four;
    std::memcpy(&four, quants, 4);
    return _mm256_set1_epi32(four);
  }

  // One block of eight rows' nibbles as bytes, [8 groups of four columns].
  struct Nibbles {
    I group[8];
  };
  static Nibbles unpack(const BandQ4& band, int part) {
    const I low = _mm256_set1_epi8(15);
    Nibbles nibbles;
    for (int j = 0; j < 4; j++) {
      const I pairs = _mm256_loadu_si256(reinterpret_cast<const I*>(band.nibbles[j] + 32 * part));
      nibbles.group[j] = _mm256_and_si256(pairs, low);
      nibbles.group[j + 4] = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
    }
    return nibbles;
  }
  // Eight products of at most 15 * 127 * 2 stay within 16 bits: one widening at the end is enough.
  static I dot(const Nibbles& nibbles, const int8_t* quants) {
    I sum = _mm256_maddubs_epi16(nibbles.group[0], broadcast4(quants));
    for (int j = 1; j < 8; j++) sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(nibbles.group[j], broadcast4(quants + 4 * j)));
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  }

  // Signed times signed: the weight's sign moves over to the activation. Two products of 128 * 127 stay within 16 bits.
  template <int T>
  static void dot_q8(const BandQ8& band, int part, const int8_t* const* quants, const int32_t*, I* dots) {
    const I ones = _mm256_set1_epi16(1);
    for (int t = 0; t < T; t++) dots[t] = _mm256_setzero_si256();
    for (int j = 0; j < 8; j++) {
      const I weights = _mm256_loadu_si256(reinterpret_cast<const I*>(band.quants[j] + 32 * part));
      const I magnitudes = _mm256_abs_epi8(weights);
      for (int t = 0; t < T; t++) {
        const I signed_x = _mm256_sign_epi8(broadcast4(quants[t] + 4 * j), weights);
        dots[t] = _mm256_add_epi32(dots[t], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitudes, signed_x), ones));
      }
    }
  }
};

}  // namespace
}  // namespace millrace
