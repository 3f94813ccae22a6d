// What becomes operands of the tensor cores' products. Source: PTX ISA, ldmatrix and cvt.
#pragma once

#include <cstdint>

namespace millrace {

// Four 8 x 8 matrices of 16 bits from shared memory, of which lanes 8i to 8i + 7 name the rows of the i-th.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
}
__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
}

// Two neighbours of four values of E4M3 as float16, which holds all of them.
__device__ __forceinline__ uint32_t halves_of(uint32_t four, uint32_t is_upper) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(four >> 16 * is_upper)));
  return halves;
}

}  // namespace millrace
