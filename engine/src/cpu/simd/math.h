// What the SIMD kernels share over any lanes L. Wherever a sum goes across lanes it goes over 16 of them in one fixed tree, so that
// eight lanes and sixteen give the same bits.
#pragma once

#include <immintrin.h>

namespace millrace {
namespace {

// e^x within 2 units in the last place for -87.3 <= x <= 88; 0 below. Cody and Waite's reduction, then a polynomial of degree 6.
template <typename L>
typename L::F exponential(typename L::F x) {
  using F = typename L::F;
  const F lowest = L::all(-87.3f);
  const F clamped = L::min(L::max(x, lowest), L::all(88.0f));
  const F n = L::round(L::mul(clamped, L::all(1.44269504f)));
  const F r = L::fma(n, L::all(2.12194440e-4f), L::fma(n, L::all(-0.693359375f), clamped));
  F sum = L::fma(r, L::all(1.0f / 720), L::all(1.0f / 120));
  sum = L::fma(sum, r, L::all(1.0f / 24));
  sum = L::fma(sum, r, L::all(1.0f / 6));
  sum = L::fma(sum, r, L::all(0.5f));
  sum = L::fma(sum, r, L::all(1.0f));
  sum = L::fma(sum, r, L::all(1.0f));
  return L::where_at_least(L::mul(sum, L::power_of_two(n)), x, lowest);
}

// 1 / (1 + e^-x).
template <typename L>
typename L::F sigmoid(typename L::F x) {
  return L::div(L::all(1), L::add(L::all(1), exponential<L>(L::sub(L::zero(), x))));
}

// cap * tanh(x / cap), as cap * (1 - 2 / (1 + e^(2x / cap))): off by 1e-7 of cap at most.
template <typename L>
typename L::F capped(typename L::F x, float cap) {
  const typename L::F y = L::mul(x, L::all(2 / cap));
  return L::mul(L::all(cap), L::sub(L::all(1), L::mul(L::all(2), sigmoid<L>(L::sub(L::zero(), y)))));
}

inline float sum_of_8(__m256 v) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

inline float max_of_8(__m256 v) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

// Of 16 floats in memory.
inline float sum_of_16(const float* v) { return sum_of_8(_mm256_add_ps(_mm256_loadu_ps(v), _mm256_loadu_ps(v + 8))); }
inline float max_of_16(const float* v) { return max_of_8(_mm256_max_ps(_mm256_loadu_ps(v), _mm256_loadu_ps(v + 8))); }

}  // namespace
}  // namespace millrace
