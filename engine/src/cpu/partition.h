// Attention over a long context is cut into partitions of this many positions, whose results are merged in order: fixed by position
// alone, so that neither the batch nor the threads can change a bit.
#pragma once

#include "kernels.h"

namespace millrace {

constexpr int partition_tokens = 256;
static_assert(partition_tokens % chunk_tokens == 0);

}  // namespace millrace
