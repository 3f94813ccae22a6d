// The beginning of a step: each token's row of the embedding, the angles that its position turns heads by, and its id into the history that
// penalties count. One block a token.
#include "launch.h"
#include "norm_shared.cuh"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int embed_threads = 256;

__device__ void turn(const DeviceRope& rope, int token, int position) {
  for (int i = threadIdx.x; i < rope.pairs; i += blockDim.x) {
    // In double: a float has too few bits for the angles of long contexts.
    double sine, cosine;
    sincos(static_cast<double>(position) * static_cast<double>(rope.frequencies[i]), &sine, &cosine);
    rope.turns[static_cast<int64_t>(token) * rope.pairs + i] = {rope.factor * static_cast<float>(cosine), rope.factor * static_cast<float>(sine)};
  }
}

__global__ void __launch_bounds__(embed_threads) embed_kernel(StepView step, EmbedTask task) {
  let_next_begin();
  wait_for_previous();
  const int t = static_cast<int>(blockIdx.x);
  const StepToken token = step.tokens[t];
  if (t >= step.counts->tokens || token.slot < 0) return;
  const int32_t id = token.id >= 0 ? token.id : task.last_tokens[token.slot];
  if (threadIdx.x == 0) task.history[token.slot * task.history_stride + token.position] = id;
  const __nv_bfloat16* row = task.embedding + static_cast<int64_t>(id) * task.columns;
  // Threads 16 by 16, as squares are summed; hidden is a multiple of that.
  for (int first = 0; first < task.hidden; first += embed_threads) {
    const int i = first + static_cast<int>(threadIdx.x);
    const float value = i < task.hidden ? __bfloat162float(row[i]) * task.scale : 0.0f;
    if (i < task.hidden) task.x[static_cast<int64_t>(t) * task.hidden + i] = value;
    if (task.next.weight != nullptr) leave_for_norm(task.next, i < task.hidden ? task.next.weight[i] : 0, task.hidden, i, t, value, i < task.hidden);
  }
  for (int i = 0; i < task.ropes.count; i++) turn(task.ropes.rope[i], t, token.position);
}

}  // namespace

void embed(cudaStream_t stream, const StepView& step, const EmbedTask& task) {
  launch(stream, step.tokens_max, embed_threads, 0, embed_kernel, step, task);
}

}  // namespace millrace
