// How keys and values that lie in shared memory become the tensor cores' operands: InBfloat16 as they are, InE4m3 by way of float16, which is exact. Products
// are of E4M3 as it is stored: a KV head's scales (KvView) come in with scores and answers, in float32.
//
// An ldmatrix of E4M3 brings lane 4g + t the bytes 4t to 4t + 3 of row g, 16 dimensions a row: the pair of an operand's columns 2t and 2t + 1 is dimensions
// 4t and 4t + 1, the pair of 2t + 8 and 2t + 9 dimensions 4t + 2 and 4t + 3, in keys as in queries (half_place). Transposed, it brings two positions of
// dimensions 2g and 2g + 1: rows or columns g of one operand are the even dimensions of 16, those of another the odd ones.
// Sources: PTX ISA, mma.m16n8k16, ldmatrix and cvt.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../kv/layout.h"
#ifdef __CUDACC__
#include "operand.cuh"
#endif

namespace millrace {

constexpr uint32_t full_warp = 0xffffffffu;

#ifdef __CUDACC__

// Four registers of a lane: an operand of 16 rows, or two of 8 columns.
struct Operand {
  uint32_t part[4];
};

struct InBfloat16 {
  static constexpr KvElement element = KvElement::bfloat16;
  static constexpr int value_bytes = 2, steps = 1;  // of 16 dimensions that four matrices bring
  static constexpr bool is_scaled = false;

  // From four matrices, those of step h. Keys as rows come from [rows 0-7, 8-15] of the left half of 32 bytes, then of the right one; keys as columns from
  // both halves of rows 0-7, then of rows 8-15. Values as rows come, transposed, from matrices that lie across or not as values_across says.
  static constexpr bool values_across = true;
  __device__ __forceinline__ static Operand key_rows(const uint32_t (&k)[4], int) { return {{k[0], k[1], k[2], k[3]}}; }
  __device__ __forceinline__ static Operand key_columns(const uint32_t (&k)[4], int) { return {{k[0], k[1], k[2], k[3]}}; }
  __device__ __forceinline__ static Operand value_rows(const uint32_t (&v)[4], int) { return {{v[0], v[1], v[2], v[3]}}; }
  __device__ __forceinline__ static Operand value_columns(const uint32_t (&v)[4], int) { return {{v[0], v[1], v[2], v[3]}}; }
  // Which of 16 dimensions is row g of an operand's first 8 rows or of its others.
  __device__ __forceinline__ static int dimension(int g, int is_other) { return is_other * 8 + g; }

  __device__ __forceinline__ static void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  __device__ __forceinline__ static uint32_t pair(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
};

struct InE4m3 {
  static constexpr KvElement element = KvElement::e4m3;
  static constexpr int value_bytes = 1, steps = 2;
  static constexpr bool is_scaled = true, values_across = false;

  // Both positions of the even dimension, then of the odd one.
  __device__ __forceinline__ static uint32_t sorted(uint32_t bytes) { return __byte_perm(bytes, 0, 0x3120); }

  __device__ __forceinline__ static Operand key_rows(const uint32_t (&k)[4], int h) {
    return {{halves_of(k[2 * h], 0), halves_of(k[2 * h + 1], 0), halves_of(k[2 * h], 1), halves_of(k[2 * h + 1], 1)}};
  }
  __device__ __forceinline__ static Operand key_columns(const uint32_t (&k)[4], int h) {
    return {{halves_of(k[h], 0), halves_of(k[h], 1), halves_of(k[2 + h], 0), halves_of(k[2 + h], 1)}};
  }
  __device__ __forceinline__ static Operand value_rows(const uint32_t (&v)[4], int h) {
    const uint32_t first = sorted(v[2 * h]), second = sorted(v[2 * h + 1]);
    return {{halves_of(first, 0), halves_of(first, 1), halves_of(second, 0), halves_of(second, 1)}};
  }
  __device__ __forceinline__ static Operand value_columns(const uint32_t (&v)[4], int h) {
    const uint32_t first = sorted(v[2 * h]), second = sorted(v[2 * h + 1]);
    return {{halves_of(first, 0), halves_of(second, 0), halves_of(first, 1), halves_of(second, 1)}};
  }
  __device__ __forceinline__ static int dimension(int g, int is_other) { return 2 * g + is_other; }

  __device__ __forceinline__ static void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  __device__ __forceinline__ static uint32_t pair(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
};

#endif

}  // namespace millrace
