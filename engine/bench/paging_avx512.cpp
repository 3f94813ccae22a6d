#include "cpu/simd/attend.h"
#include "cpu/simd/avx512_lanes.h"
#include "paging_kernels.h"

namespace millrace::bench {

const PagingKernels paging_avx512 = {.name = "avx512",
                                    .ranges = [](const TableTask& task) { Attention<Avx512, uint16_t>::run(task); },
                                    .tables = [](const TableTask& task) { Attention<Avx512, uint16_t, PagesOfTable>::run(task); }};

}  // namespace millrace::bench
