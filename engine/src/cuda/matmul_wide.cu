// y[t][r] = w[r] . x[t] for tokens too many for matmul_stream.cu's small products and too few to keep the tensor cores busy: w is read once, at the
// memory's pace.
//
// Grid: clusters of CTAs, one CTA a multiprocessor; see wide_plan.h for their rows, columns and stages. The copy engine is asked for stages up to a ring's worth
// ahead, and two warpgroups multiply: group g has the 64 rows number g and g + 2. E4M3 becomes float16, which holds its values, on the way to wgmma's
// registers: so tokens need not be quantized. The second operand is tokens as they lie in the stage. Where the CTAs of a cluster have a part of the columns each,
// they put their sums where the ring was, and each finishes some of the tokens, adding in the order of the columns.
// Bytes: rows * columns * (2 or 1) of w, from memory; tokens * columns * 2 of x for each cluster, from L2; tokens * rows * 4 of y.
// Reference: the sums in double, in test/cuda/matmul_wide.test.cpp.
#include "launch.h"
#include "operand.cuh"
#include "wgmma.cuh"
#include "wide_finish.cuh"

namespace millrace {
namespace {

using Type = DeviceMatrix::Type;
using Kind = MatmulOutput::Kind;

// Lines of 128 bytes that lie together; a product takes 32 of each, in units of 16.
__device__ uint64_t lines_at(uint32_t address) { return mma_tile(address, 1024); }
constexpr uint64_t line_step = 2;

// Adds the products of 64 rows and one unit of x, and returns when those before them are done. bfloat16 is multiplied as it lies in shared memory; E4M3, half a stage
// of it, becomes float16 on the way, while the products before these go on. `rows` is where the 64 rows begin, or the thread's line of ldmatrix.
template <typename Shape>
__device__ __forceinline__ void add_unit(float (&sums)[Shape::n / 8][4], uint32_t rows, uint32_t unit) {
  const uint64_t x = lines_at(unit);
  if constexpr (Shape::type == Type::bf16) {
    const uint64_t w = lines_at(rows);
    mma_begin();
#pragma unroll
    for (int i = 0; i < 4; i++) multiply_rows(sums, w + line_step * i, x + line_step * i, true);
  } else {
    uint32_t halves[4][4];
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
      uint32_t raw[4];
      load_matrices(raw, rows ^ 32 * i);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        halves[2 * i + j / 2][j % 2] = halves_of(raw[j], 0);
        halves[2 * i + j / 2][j % 2 + 2] = halves_of(raw[j], 1);
      }
    }
    mma_begin();
#pragma unroll
    for (int i = 0; i < 4; i++) multiply_halves(sums, halves[i], x + line_step * i);
  }
  mma_commit();
  mma_wait<1>();
}

// Sums all stages. A slot is filled again when the first products of the next stage are on their way: the other warpgroup most likely is done with it by then.
template <typename Shape>
__device__ void multiply_all(const WideTask& task, const WideRing& ring, const WidePart& part, const WideLoader<Shape>& loader, float (&sums)[Shape::row_tiles][Shape::n / 8][4]) {
  const WideLane lane;
  uint32_t rows[Shape::row_tiles];
#pragma unroll
  for (int m = 0; m < Shape::row_tiles; m++) rows[m] = Shape::type == Type::bf16 ? static_cast<uint32_t>((lane.group + wide_groups * m) * 4 * wide_block_bytes) : lane.line(m, part.count);
  const bool has_first = lane.group * 4 < part.count, has_second = (lane.group + wide_groups) * 4 < part.count;
  Turn turn, last;
#pragma unroll 1
  for (int step = part.from; step < part.upto; step++, turn.advance(task.plan.stages)) {
    barrier_wait(ring.full(turn.slot), turn.parity);
    const uint32_t stage = ring.stage(turn.slot), tokens = stage + static_cast<uint32_t>(task.plan.tokens_at);
#pragma unroll
    for (int m = 0; m < Shape::row_tiles; m++) {
      if (m == 0 ? !has_first : !has_second) continue;
#pragma unroll
      for (int unit = 0; unit < Shape::units; unit++) {
        add_unit<Shape>(sums[m], stage + (rows[m] ^ 64 * static_cast<uint32_t>(unit)), tokens + static_cast<uint32_t>(unit) * Shape::unit_bytes);
        if (m == 0 && unit == 0 && step > part.from) loader.refill(last, step - 1);
      }
    }
    last = turn;
    mma_wait<0>();
#pragma unroll
    for (int m = 0; m < Shape::row_tiles; m++) mma_settled(sums[m]);
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(ring.empty(turn.slot));
  }
}

template <typename Shape>
__global__ void __launch_bounds__(wide_threads, wide_leaves_half(Shape::n, Shape::row_tiles) ? 2 : 1)
    wide_kernel(const __grid_constant__ WideMaps w, const __grid_constant__ CUtensorMap x, const __grid_constant__ WideTask task) {
  const WideRing ring{shared_address(wide_shared), static_cast<uint32_t>(task.plan.stage_bytes)};
  const WidePart part(task.plan);
  const WideLoader<Shape> loader{w, x, task, ring, part};
  const int filled = min(task.plan.stages, part.upto - part.from);
  let_next_begin();
  if (threadIdx.x == 0) {
    for (const CUtensorMap* map : {&w.blocks, &w.one_more, &x}) prefetch_map(*map);
#pragma unroll 1
    for (int slot = 0; slot < task.plan.stages; slot++) {
      barrier_init(ring.full(slot), 1);
      barrier_init(ring.empty(slot), wide_warps);
    }
    barriers_ready();
    // Weights never change, so that this needs not wait for who runs before.
#pragma unroll 1
    for (int slot = 0; slot < filled; slot++) loader.load_weights(slot, part.from + slot);
  }
  __syncthreads();
  wait_for_previous();
#pragma unroll 1
  for (int slot = 0; slot < filled; slot++) loader.load_tokens(slot, part.from + slot);
  find_factors(task);
  {
    float sums[Shape::row_tiles][Shape::n / 8][4] = {};
    multiply_all<Shape>(task, ring, part, loader, sums);
    __syncthreads();  // the other warpgroup has read the ring too
    put_sums<Shape>(ring, sums);
  }
  if (task.plan.splits > 1)
    cluster_end();
  else
    __syncthreads();
  switch (task.output.kind) {
    case Kind::store:
      finish_all<Shape, Kind::store>(task, ring, part);
      break;
    case Kind::add:
      finish_all<Shape, Kind::add>(task, ring, part);
      break;
    case Kind::gate:
      finish_all<Shape, Kind::gate>(task, ring, part);
      break;
  }
  if (task.plan.splits > 1) cluster_leave();  // sums stay until all have read them
}

template <typename Shape>
void launch_wide(cudaStream_t stream, const WideMaps& w, const CUtensorMap& x, const WideTask& task) {
  constexpr size_t shared_bytes_max = 227 << 10;
  static const bool is_allowed = (allow_shared(wide_kernel<Shape>, shared_bytes_max), true);
  static_cast<void>(is_allowed);
  launch_clusters(stream, task.plan.splits, static_cast<unsigned>(task.plan.clusters * task.plan.splits), wide_threads, task.plan.shared_bytes, wide_kernel<Shape>, w, x, task);
}

template <Type type, int n>
void launch_wide(cudaStream_t stream, const WideMaps& w, const CUtensorMap& x, const WideTask& task) {
  if (task.plan.row_tiles() == 1) return launch_wide<Wide<type, n, 1>>(stream, w, x, task);
  launch_wide<Wide<type, n, 2>>(stream, w, x, task);
}

template <Type type>
void launch_wide(cudaStream_t stream, const WideMaps& w, const CUtensorMap& x, const WideTask& task) {
  switch (task.plan.n) {
    case 32:
      return launch_wide<type, 32>(stream, w, x, task);
    case 64:
      return launch_wide<type, 64>(stream, w, x, task);
    case 96:
      return launch_wide<type, 96>(stream, w, x, task);
    default:
      return launch_wide<type, 128>(stream, w, x, task);
  }
}

// Of CTAs that each have a multiprocessor to themselves.
int count_clusters(int ctas) {
  using Largest = Wide<Type::bf16, 128, 2>;
  constexpr size_t most_bytes = 200 << 10;
  allow_shared(wide_kernel<Largest>, most_bytes);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(ctas);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(ctas);
  config.blockDim = wide_threads;
  config.dynamicSmemBytes = most_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  check(cudaOccupancyMaxActiveClusters(&count, wide_kernel<Largest>, &config), "counting clusters");
  return count;
}

}  // namespace

void matmul_wide(cudaStream_t stream, const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const MatmulOutput& output, const WideTuning& tuning) {
  static const WideMachine machine = [] {
    WideMachine machine = {};
    for (int ctas = 1; ctas <= wide_splits_max; ctas++) machine.clusters[ctas] = count_clusters(ctas);
    return machine;
  }();
  const bool is_gate = output.kind == MatmulOutput::Kind::gate;
  WideTask task{.output = output, .scales = w.type == Type::fp8 ? w.scales : nullptr, .rows = w.rows, .tokens = tokens};
  task.half_rows = is_gate ? w.rows / 2 : wide_half_rows;
  if (w.type != Type::bf16) task.factor = half_divisor;  // the products are of halves
  task.plan = plan_wide(w, tokens, output.kind, machine, tuning);
  const WideMaps maps = wide_maps_of_weights(w, output.kind, task.plan);
  const CUtensorMap x_map = wide_map_of_tokens(w, x, tokens, task.plan);
  if (w.type == Type::bf16)
    launch_wide<Type::bf16>(stream, maps, x_map, task);
  else
    launch_wide<Type::fp8>(stream, maps, x_map, task);
}

void matmul_wide(cudaStream_t stream, const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const MatmulOutput& output) {
  matmul_wide(stream, w, x, tokens, output, WideTuning{});
}

}  // namespace millrace
