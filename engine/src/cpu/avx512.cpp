// The kernels for CPUs with AVX-512 and VNNI: matrices and attention at sixteen lanes; what is small stays AVX2's. Both tables give
// the same bits, since each lane sums in the same order.
#include "kernels.h"
#include "simd/attend.h"
#include "simd/avx512_lanes.h"
#include "simd/matmul.h"

namespace millrace {

const Kernels& avx512_table() {
  static const Kernels table = [] {
    Kernels kernels = avx2_kernels;
    kernels.name = "avx512";
    kernels.matmul = Matmul<Avx512>::matmul<false>;
    kernels.matmul_add = Matmul<Avx512>::matmul<true>;
    kernels.matmul_gated = Matmul<Avx512>::gated;
    kernels.attend = attend<Avx512>;
    return kernels;
  }();
  return table;
}

}  // namespace millrace
