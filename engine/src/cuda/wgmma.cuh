// Hopper's warpgroup products: four warps multiply 64 rows of 16 columns by a tile in shared memory, and their sums stay in registers.
//
// Of each warp's 16 rows, lane 4g + t has rows g and g + 8: of the first operand, where it is in registers, columns 2t, 2t + 1, 2t + 8 and 2t + 9; of the
// sums, of each 8 columns 2t and 2t + 1. So the sums of one product are the first operand of another one as they are. Products run on while the warps do
// something else, which must not touch their registers. Source: PTX ISA, wgmma.mma_async.
#pragma once

#include <cstdint>

namespace millrace {

// Registers are as products may now use them.
__device__ __forceinline__ void mma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void mma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// All products but those of the `pending` last commits are done.
template <int pending>
__device__ __forceinline__ void mma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// Keeps what uses the sums behind the wait in front of this: the compiler does not know that products end there.
template <int count>
__device__ __forceinline__ void mma_settled(float (&sums)[count][4]) {
#pragma unroll
  for (int i = 0; i < count; i++) asm volatile("" : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])::"memory");
}

// Describes lines of 128 bytes as the copy engine leaves them with its 128-byte swizzle: blocks of 8 lines, which begin at multiples of 1 KiB.
// Where a product takes 32 bytes of each line, lines are rows or columns of it, those of its next 8 `step` bytes on. Where it takes 16 lines
// (is_across), these are what is summed over, 8 and the other 8 `step` bytes apart, and its next 64 columns are `next` bytes on. Descriptions count in
// 16 bytes: the swizzle is one of the address, so that a multiple of 32 bytes along the lines can be added, as can any of 1 KiB.
__device__ __forceinline__ uint64_t mma_tile(uint32_t address, uint32_t step, uint32_t next = 16) {
  constexpr uint64_t swizzled_128 = uint64_t{1} << 62;
  return swizzled_128 | uint64_t{step / 16} << 32 | uint64_t{next / 16} << 16 | uint64_t{(address & 0x3ffff) / 16};
}

// Sums are [8 columns][4], as the registers are numbered.
#define MILLRACE_MMA_16 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define MILLRACE_MMA_32 MILLRACE_MMA_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MILLRACE_MMA_48 MILLRACE_MMA_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define MILLRACE_MMA_64 MILLRACE_MMA_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MILLRACE_MMA_SUMS_4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define MILLRACE_MMA_SUMS_AT(i) MILLRACE_MMA_SUMS_4(i), MILLRACE_MMA_SUMS_4(i + 1), MILLRACE_MMA_SUMS_4(i + 2), MILLRACE_MMA_SUMS_4(i + 3)
#define MILLRACE_MMA_SUMS_16 MILLRACE_MMA_SUMS_AT(0)
#define MILLRACE_MMA_SUMS_32 MILLRACE_MMA_SUMS_16, MILLRACE_MMA_SUMS_AT(4)
#define MILLRACE_MMA_SUMS_48 MILLRACE_MMA_SUMS_32, MILLRACE_MMA_SUMS_AT(8)
#define MILLRACE_MMA_SUMS_64 MILLRACE_MMA_SUMS_48, MILLRACE_MMA_SUMS_AT(12)

// Rows of two tiles, by 32 bytes of each, in bfloat16: added to the sums where `adds`, else put in their place. `sums` is half of `n`, and the operands behind them are of
// these numbers.
#define MILLRACE_MULTIPLY_ROWS(n, sums, n0, n1, n2)                                                                                                         \
  __device__ __forceinline__ void multiply_rows(float (&d)[sums / 4][4], uint64_t a, uint64_t b, bool adds) {                                               \
    asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %" #n2 ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 " MILLRACE_MMA_##sums \
                 "}, %" #n0 ", %" #n1 ", adds, 1, 1, 0, 0;\n\t}"                                                                                            \
                 : MILLRACE_MMA_SUMS_##sums                                                                                                                 \
                 : "l"(a), "l"(b), "r"(static_cast<int>(adds)));                                                                                            \
  }
MILLRACE_MULTIPLY_ROWS(32, 16, 16, 17, 18)
MILLRACE_MULTIPLY_ROWS(64, 32, 32, 33, 34)
MILLRACE_MULTIPLY_ROWS(96, 48, 48, 49, 50)
MILLRACE_MULTIPLY_ROWS(128, 64, 64, 65, 66)

// Rows in registers, in float16, by rows of a tile: added to the sums.
#define MILLRACE_MULTIPLY_HALVES(n, sums, n0, n1, n2, n3, n4)                                                                                               \
  __device__ __forceinline__ void multiply_halves(float (&d)[sums / 4][4], const uint32_t (&a)[4], uint64_t b) {                                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 " MILLRACE_MMA_##sums "}, {%" #n0 ", %" #n1 ", %" #n2 ", %" #n3 "}, %" #n4         \
                 ", 1, 1, 1, 0;"                                                                                                                            \
                 : MILLRACE_MMA_SUMS_##sums                                                                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                                                     \
  }
MILLRACE_MULTIPLY_HALVES(32, 16, 16, 17, 18, 19, 20)
MILLRACE_MULTIPLY_HALVES(64, 32, 32, 33, 34, 35, 36)
MILLRACE_MULTIPLY_HALVES(96, 48, 48, 49, 50, 51, 52)
MILLRACE_MULTIPLY_HALVES(128, 64, 64, 65, 66, 67, 68)

// Rows in registers, in bfloat16, by 16 lines of a tile: added to the sums where `adds`, else put in their place.
#define MILLRACE_MULTIPLY_ACROSS(n, sums, n0, n1, n2, n3, n4, n5)                                                                                           \
  __device__ __forceinline__ void multiply_across(float (&d)[sums / 4][4], const uint32_t (&a)[4], uint64_t b, bool adds) {                                 \
    asm volatile("{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %" #n5 ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 " MILLRACE_MMA_##sums \
                 "}, {%" #n0 ", %" #n1 ", %" #n2 ", %" #n3 "}, %" #n4 ", adds, 1, 1, 1;\n\t}"                                                               \
                 : MILLRACE_MMA_SUMS_##sums                                                                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(adds)));                                                        \
  }
MILLRACE_MULTIPLY_ACROSS(64, 32, 32, 33, 34, 35, 36, 37)
MILLRACE_MULTIPLY_ACROSS(128, 64, 64, 65, 66, 67, 68, 69)

#undef MILLRACE_MULTIPLY_ROWS
#undef MILLRACE_MULTIPLY_HALVES
#undef MILLRACE_MULTIPLY_ACROSS

}  // namespace millrace
