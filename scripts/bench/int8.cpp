// How fast this machine multiplies int8 at most: each thread runs the instruction that the engine's kernels multiply with, on registers
// alone, over enough sums that none waits for the one before it; the best of some passes. What it leaves out is what a matrix cannot do
// without: loads, scales, and the sums' conversion to float.
//
//     int8 THREADS        prints multiply-adds a second and the instruction
#include <immintrin.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr int passes = 7;
constexpr int64_t rounds = 8'000'000;

#if defined(__AVX512VNNI__)
constexpr const char* instruction = "vpdpbusd, 64 multiply-adds";
using Vector = __m512i;
constexpr int64_t products = 64;
Vector all(int value) { return _mm512_set1_epi32(value); }
int first(Vector vector) { return _mm_cvtsi128_si32(_mm512_castsi512_si128(vector)); }
Vector multiply_add(Vector sum, Vector a, Vector b) { return _mm512_dpbusd_epi32(sum, a, b); }
#else
// Widening to 32 bits, once in eight of these, is left out too.
constexpr const char* instruction = "vpmaddubsw and vpaddw, 32 multiply-adds";
using Vector = __m256i;
constexpr int64_t products = 32;
Vector all(int value) { return _mm256_set1_epi32(value); }
int first(Vector vector) { return _mm_cvtsi128_si32(_mm256_castsi256_si128(vector)); }
Vector multiply_add(Vector sum, Vector a, Vector b) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b)); }
#endif

// Each sum has a factor of its own, else one product would do for several.
constexpr int sums = 6;

int multiply(int seed) {
  Vector sum[sums], left[sums], right = all(0x01020304 + seed);
  for (int i = 0; i < sums; i++) sum[i] = all(i);
  for (int i = 0; i < sums; i++) left[i] = all(0x04030201 + i + seed);
#pragma GCC unroll 8
  for (int64_t round = 0; round < rounds; round++) {
    asm volatile("" : "+x"(right));  // may have changed, says this to the compiler: no product can be kept from the round before
    for (int i = 0; i < sums; i++) sum[i] = multiply_add(sum[i], left[i], right);
  }
  int total = 0;
  for (const Vector each : sum) total += first(each);
  return total;
}

}  // namespace

int main(int argc, char** argv) {
  const size_t threads = argc == 2 ? static_cast<size_t>(std::atoi(argv[1])) : 0;
  if (threads < 1 || threads > 1024) {
    std::fputs("int8: give the number of threads\n", stderr);
    return 1;
  }
  double best_seconds = 1e9;
  volatile int kept = 0;  // else nothing would be computed
  for (int pass = 0; pass < passes; pass++) {
    std::vector<int> totals(threads);
    const auto started = std::chrono::steady_clock::now();
    std::vector<std::thread> team;
    for (size_t t = 0; t < threads; t++) team.emplace_back([&totals, t, argc] { totals[t] = multiply(argc); });
    for (std::thread& member : team) member.join();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    if (seconds < best_seconds) best_seconds = seconds;
    for (const int each : totals) kept = kept ^ each;
  }
  std::printf("%.0f %s\n", static_cast<double>(rounds * sums * products) * static_cast<double>(threads) / best_seconds, instruction);
  return 0;
}
