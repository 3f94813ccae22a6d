// attend_pieces as it would be without virtual memory of its own: addresses of blocks through a table.
#pragma once

#include "cuda/kernels.h"

namespace millrace::bench {

// Blocks hold 16 tokens; blocks[slot * stride + position / 16] is a block's number in a pool that begins at the view's base. Of the view, page_bytes is
// from one block to the next, and slot_bytes 0. All else is attend_pieces' own.
struct BlockTable {
  const int* blocks = nullptr;
  int stride = 0;
};

void attend_pieces_through(const BlockTable& table, cudaStream_t stream, const StepView& step, const AttendShape& shape, const KvView& kv, const __nv_bfloat16* q,
                           int64_t q_stride, const AttendScratch& scratch, __nv_bfloat16* out, int64_t out_stride);

}  // namespace millrace::bench
