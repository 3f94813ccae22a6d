// Norms of the residual stream: out[t] = norm(x[t]) as a matrix reads it, and x[t] += norm(added[t]). One block a token, four values a thread at a
// time; the second pass finds its values in the cache. Bytes: n * 4 read, n * 2 or n * 8 written.
#include "launch.h"
#include "quantize.cuh"
#include "reduce.cuh"
#include "store.cuh"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int norm_threads = 512;

// What a value is multiplied by after `mean` was taken off.
struct Scale {
  float mean, factor;
};

__device__ Scale scale_of(const DeviceNorm& norm, const float* x, int n, float* partial) {
  if (norm.weight == nullptr) return {0, 1};
  float sum = 0, squares = 0, mean = 0;
  const auto* quads = reinterpret_cast<const float4*>(x);  // n is a multiple of 16
  if (norm.is_layer) {
    for (int i = threadIdx.x; i < n / 4; i += blockDim.x) sum += (quads[i].x + quads[i].y) + (quads[i].z + quads[i].w);
    mean = block_sum(sum, partial) / static_cast<float>(n);
  }
  for (int i = threadIdx.x; i < n / 4; i += blockDim.x) {
    const float a = quads[i].x - mean, b = quads[i].y - mean, c = quads[i].z - mean, d = quads[i].w - mean;
    squares += (a * a + b * b) + (c * c + d * d);
  }
  return {mean, rsqrtf(block_sum(squares, partial) / static_cast<float>(n) + norm.epsilon)};
}

__device__ float apply(const DeviceNorm& norm, Scale scale, float value, int i) {
  if (norm.weight == nullptr) return value;
  return (value - scale.mean) * scale.factor * norm.weight[i] + (norm.is_layer ? norm.bias[i] : 0.0f);
}

__device__ float2 apply_pair(const DeviceNorm& norm, Scale scale, const float* x, int i) {
  const float2 pair = *reinterpret_cast<const float2*>(x + i);
  return {apply(norm, scale, pair.x, i), apply(norm, scale, pair.y, i + 1)};
}

__global__ void __launch_bounds__(norm_threads) normalize_kernel(StepView step, Rows rows, DeviceNorm norm, const float* x, int n, int stride, __nv_bfloat16* out, Activations as) {
  __shared__ float partial[32];
  let_next_begin();
  wait_for_previous();
  const int row = static_cast<int>(blockIdx.x);
  int t = row;
  if (rows == Rows::samples) {
    if (row >= step.counts->samples || step.samples[row].slot < 0) return;
    t = step.samples[row].token;
  }
  if (t >= step.counts->tokens || step.tokens[t].slot < 0) return;
  x += static_cast<int64_t>(t) * n;
  const Scale scale = scale_of(norm, x, n, partial);
  for (int i = 2 * static_cast<int>(threadIdx.x); i < n; i += 2 * static_cast<int>(blockDim.x)) {
    const float2 pair = apply_pair(norm, scale, x, i);
    store_pair(out + static_cast<int64_t>(row) * stride, i, pair.x, pair.y, as);
  }
}

__global__ void __launch_bounds__(norm_threads) normalize_quantized_kernel(StepView step, DeviceNorm norm, const float* x, int n, int stride, Quantized out) {
  __shared__ float partial[32];
  let_next_begin();
  wait_for_previous();
  const int64_t t = blockIdx.x;
  if (t >= step.counts->tokens || step.tokens[t].slot < 0) return;
  x += t * n;
  const Scale scale = scale_of(norm, x, n, partial);
  float largest = 0;
  for (int i = 2 * static_cast<int>(threadIdx.x); i < n; i += 2 * norm_threads) {
    const float2 pair = apply_pair(norm, scale, x, i);
    largest = fmaxf(largest, fmaxf(fabsf(pair.x), fabsf(pair.y)));
  }
  const float step_size = e4m3_scale(block_largest(largest, partial)), inverse = 1 / step_size;
  if (threadIdx.x == 0) out.scales[t] = step_size;
  auto* to = reinterpret_cast<uint16_t*>(out.values + t * stride);
  for (int i = 2 * static_cast<int>(threadIdx.x); i < stride; i += 2 * norm_threads) to[i / 2] = i < n ? e4m3_pair(apply_pair(norm, scale, x, i), inverse) : uint16_t{0};
}

__global__ void __launch_bounds__(norm_threads) add_normed_kernel(StepView step, DeviceNorm norm, const float* added, int n, float* x) {
  __shared__ float partial[32];
  let_next_begin();
  wait_for_previous();
  const int t = static_cast<int>(blockIdx.x);
  if (t >= step.counts->tokens || step.tokens[t].slot < 0) return;
  added += static_cast<int64_t>(t) * n;
  x += static_cast<int64_t>(t) * n;
  const Scale scale = scale_of(norm, added, n, partial);
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) x[i] += apply(norm, scale, added[i], i);
}

}  // namespace

void normalize(cudaStream_t stream, const StepView& step, Rows rows, const DeviceNorm& norm, const float* x, int n, __nv_bfloat16* out, Activations as) {
  const int count = rows == Rows::samples ? step.samples_max : step.tokens_max;
  if (count > 0) launch(stream, count, norm_threads, 0, normalize_kernel, step, rows, norm, x, n, padded_columns(n), out, as);
}

void normalize(cudaStream_t stream, const StepView& step, const DeviceNorm& norm, const float* x, int n, const Quantized& out) {
  launch(stream, step.tokens_max, norm_threads, 0, normalize_quantized_kernel, step, norm, x, n, padded_columns(n), out);
}

void add_normed(cudaStream_t stream, const StepView& step, const DeviceNorm& norm, const float* added, int n, float* x) {
  launch(stream, step.tokens_max, norm_threads, 0, add_normed_kernel, step, norm, added, n, x);
}

}  // namespace millrace
