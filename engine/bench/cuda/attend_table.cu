// The engine's own source, compiled once more for tasks that have a table.
#include "attend_table.h"

#define attend_pieces attend_pieces_again  // that one is in the engine
#include "cuda/attend_pieces.cu"
#undef attend_pieces

namespace millrace::bench {
namespace {

struct TabledRuns : KvRuns {
  BlockTable table;
};

struct TabledTask : AttendTask {
  TabledRuns kv;  // in place of the other one
};

__device__ __forceinline__ const uint8_t* place_of_run(const TabledRuns& kv, const uint8_t* keys, int slot, int run) {
  return keys + __ldg(kv.table.blocks + slot * kv.table.stride + run) * kv.view.page_bytes;
}

}  // namespace

void attend_pieces_through(const BlockTable& table, cudaStream_t stream, const StepView& step, const AttendShape& shape, const KvView& kv, const __nv_bfloat16* q,
                           int64_t q_stride, const AttendScratch& scratch, __nv_bfloat16* out, int64_t out_stride) {
  const KvRuns runs = runs_of(kv, shape.head_dim);
  const AttendTask task{step, shape, runs, q, q_stride, out, out_stride, Activations::bfloat16, scratch, shape.heads / shape.kv_heads, 1};
  const TabledTask tabled{task, {runs, table}};
  if (kv.element == KvElement::e4m3) return launch_pieces<InE4m3, 128, 1>(stream, tabled);
  launch_pieces<InBfloat16, 128, 1>(stream, tabled);
}

}  // namespace millrace::bench
