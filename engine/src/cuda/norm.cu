// Norms of the residual stream: out[t] = norm(x[t]) as a matrix reads it, and x[t] += norm(added[t]). One block a token, whose threads have its values in
// registers, four that lie together at a time. Bytes: n * 4 read, n * 2, n or n * 8 written.
#include <cassert>
#include <type_traits>

#include "launch.h"
#include "quantize.cuh"
#include "reduce.cuh"
#include "store.cuh"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int norm_threads = 512, quads_max = norm_values_max / (4 * norm_threads);

// A thread's part of a token's values: four from each of its columns on. Values and weights behind the n-th, a multiple of 16, are zero.
template <int quads>
class NormRow {
 public:
  float4 values[quads];

  // Asks for the weights, which no kernel writes.
  __device__ NormRow(const DeviceNorm& norm, int n) : norm_(norm), n_(n) {
    if (norm.weight != nullptr) load(weights_, norm.weight);
  }
  __device__ static int column(int quad) { return 4 * (static_cast<int>(threadIdx.x) + quad * norm_threads); }
  __device__ bool has(int quad) const { return column(quad) < n_; }

  // The values become norm(x). `partial` is shared memory for 32 floats of nobody else's.
  __device__ void read(const float* x, float* partial) {
    load(values, x);
    if (norm_.weight == nullptr) return;
    if (norm_.is_layer) {
      float sum = 0;
#pragma unroll
      for (const float4& v : values) sum += (v.x + v.y) + (v.z + v.w);
      const float mean = block_sum(sum, partial) / static_cast<float>(n_);
#pragma unroll
      for (int i = 0; i < quads; i++)
        if (has(i)) values[i].x -= mean, values[i].y -= mean, values[i].z -= mean, values[i].w -= mean;
    }
    float squares = 0;
#pragma unroll
    for (const float4& v : values) squares += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
    const float factor = rsqrtf(block_sum(squares, partial) / static_cast<float>(n_) + norm_.epsilon);
#pragma unroll
    for (int i = 0; i < quads; i++) {
      const float4 &w = weights_[i], bias = norm_.is_layer && has(i) ? *reinterpret_cast<const float4*>(norm_.bias + column(i)) : float4{};
      float4& v = values[i];
      v = {v.x * factor * w.x + bias.x, v.y * factor * w.y + bias.y, v.z * factor * w.z + bias.z, v.w * factor * w.w + bias.w};
    }
  }

 private:
  __device__ void load(float4 (&to)[quads], const float* from) const {
#pragma unroll
    for (int i = 0; i < quads; i++) to[i] = has(i) ? *reinterpret_cast<const float4*>(from + column(i)) : float4{};
  }

  const DeviceNorm& norm_;
  const int n_;
  float4 weights_[quads];
};

__device__ bool is_live(const StepView& step, int t) { return t < step.counts->tokens && step.tokens[t].slot >= 0; }

template <int quads>
__global__ void __launch_bounds__(norm_threads) normalize_kernel(StepView step, Rows rows, DeviceNorm norm, const float* x, int n, int stride, __nv_bfloat16* out, Activations as) {
  __shared__ float partial[32];
  NormRow<quads> row(norm, n);
  let_next_begin();
  wait_for_previous();
  const int place = static_cast<int>(blockIdx.x);
  int t = place;
  if (rows == Rows::samples) {
    if (place >= step.counts->samples || step.samples[place].slot < 0) return;
    t = step.samples[place].token;
  }
  if (!is_live(step, t)) return;
  row.read(x + static_cast<int64_t>(t) * n, partial);
  __nv_bfloat16* to = out + static_cast<int64_t>(place) * stride;
#pragma unroll
  for (int i = 0; i < quads; i++) {
    if (!row.has(i)) continue;
    const float4& v = row.values[i];
    store_pair(to, row.column(i), v.x, v.y, as);
    store_pair(to, row.column(i) + 2, v.z, v.w, as);
  }
}

template <int quads>
__global__ void __launch_bounds__(norm_threads) normalize_quantized_kernel(StepView step, DeviceNorm norm, const float* x, int n, int stride, Quantized out) {
  __shared__ float partial[32];
  NormRow<quads> row(norm, n);
  let_next_begin();
  wait_for_previous();
  const int t = static_cast<int>(blockIdx.x);
  if (!is_live(step, t)) return;
  row.read(x + static_cast<int64_t>(t) * n, partial);
  float largest = 0;
#pragma unroll
  for (const float4& v : row.values) largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
  const float step_size = e4m3_scale(block_largest(largest, partial)), inverse = 1 / step_size;
  if (threadIdx.x == 0) out.scales[t] = step_size;
  uint8_t* to = out.values + static_cast<int64_t>(t) * stride;
#pragma unroll
  for (int i = 0; i < quads; i++) {
    const float4& v = row.values[i];
    const uint32_t four = e4m3_pair({v.x, v.y}, inverse) | static_cast<uint32_t>(e4m3_pair({v.z, v.w}, inverse)) << 16;
    if (row.column(i) < stride) *reinterpret_cast<uint32_t*>(to + row.column(i)) = four;  // with zeros behind the last one
  }
}

template <int quads>
__global__ void __launch_bounds__(norm_threads) add_normed_kernel(StepView step, DeviceNorm norm, const float* added, int n, float* x) {
  __shared__ float partial[32];
  NormRow<quads> row(norm, n);
  let_next_begin();
  wait_for_previous();
  const int t = static_cast<int>(blockIdx.x);
  if (!is_live(step, t)) return;
  row.read(added + static_cast<int64_t>(t) * n, partial);
  x += static_cast<int64_t>(t) * n;
#pragma unroll
  for (int i = 0; i < quads; i++) {
    if (!row.has(i)) continue;
    auto& to = *reinterpret_cast<float4*>(x + row.column(i));
    const float4 &v = row.values[i], old = to;
    to = {old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w};
  }
}

// By the kernels for so many values.
template <typename Launch>
void launch_for(int n, const Launch& launch) {
  assert(n <= norm_values_max);
  if (n <= norm_values_max / 8) return launch(std::integral_constant<int, quads_max / 8>());
  if (n <= norm_values_max / 4) return launch(std::integral_constant<int, quads_max / 4>());
  if (n <= norm_values_max / 2) return launch(std::integral_constant<int, quads_max / 2>());
  launch(std::integral_constant<int, quads_max>());
}

}  // namespace

void normalize(cudaStream_t stream, const StepView& step, Rows rows, const DeviceNorm& norm, const float* x, int n, __nv_bfloat16* out, Activations as) {
  const int count = rows == Rows::samples ? step.samples_max : step.tokens_max;
  if (count > 0) launch_for(n, [&](auto quads) { launch(stream, count, norm_threads, 0, normalize_kernel<quads>, step, rows, norm, x, n, padded_columns(n), out, as); });
}

void normalize(cudaStream_t stream, const StepView& step, const DeviceNorm& norm, const float* x, int n, const Quantized& out) {
  launch_for(n, [&](auto quads) { launch(stream, step.tokens_max, norm_threads, 0, normalize_quantized_kernel<quads>, step, norm, x, n, padded_columns(n), out); });
}

void add_normed(cudaStream_t stream, const StepView& step, const DeviceNorm& norm, const float* added, int n, float* x) {
  launch_for(n, [&](auto quads) { launch(stream, step.tokens_max, norm_threads, 0, add_normed_kernel<quads>, step, norm, added, n, x); });
}

}  // namespace millrace
