#include "cpu/simd/attend.h"
#include "cpu/simd/avx2_lanes.h"
#include "paging_kernels.h"

namespace millrace::bench {

const PagingKernels paging_avx2 = {.name = "avx2",
                                  .ranges = [](const TableTask& task) { Attention<Avx2, uint16_t>::run(task); },
                                  .tables = [](const TableTask& task) { Attention<Avx2, uint16_t, PagesOfTable>::run(task); }};

}  // namespace millrace::bench
