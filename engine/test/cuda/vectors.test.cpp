// The kernels between matrices against plain double precision, on fresh random values: norms, gates, embeddings, experts and rows in E4M3;
// heads have a file of their own.
#include "cuda/vectors.h"

#include <algorithm>
#include <cmath>

#include "cuda/cuda.h"
#include "cuda/memory.h"
#include "support/cuda_step.h"
#include "support/cuda_values.h"
#include "support/random.h"
#include "support/test.h"

using namespace millrace;
using test::bf16, test::bf16_error, test::check_near, test::f32_error, test::normals, test::Random;

namespace {

std::vector<double> normed(const std::vector<float>& x, size_t at, int n, const std::vector<float>& weight, const std::vector<float>& bias, bool is_layer, double epsilon) {
  double mean = 0, squares = 0;
  for (int i = 0; i < n && is_layer; i++) mean += x[at + i] / static_cast<double>(n);
  for (int i = 0; i < n; i++) squares += std::pow(x[at + i] - mean, 2) / n;
  std::vector<double> out;
  for (int i = 0; i < n; i++) out.push_back((x[at + i] - mean) / std::sqrt(squares + epsilon) * weight[i] + (is_layer ? bias[i] : 0));
  return out;
}

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf: return 0.5 * x * (1 + std::erf(x / std::sqrt(2)));
    case Activation::clamped: break;
  }
  const double gate = std::min<double>(x, clamped_limit);
  return gate / (1 + std::exp(-static_cast<double>(clamped_alpha) * gate));
}

double gated(Activation activation, double gate, double up) {
  if (activation == Activation::clamped) up = std::clamp<double>(up, -clamped_limit, clamped_limit) + 1;
  return activated(activation, gate) * up;
}

// Rows of E4M3 that were poisoned before, as something wrote them.
struct QuantizedRows {
  explicit QuantizedRows(int rows_of, int columns_of) : rows(rows_of), stride(padded_columns(columns_of)), columns(columns_of), quants(test::upload(std::vector<uint8_t>(static_cast<size_t>(rows * stride), 0x7f))), scales(static_cast<size_t>(rows)) {}

  Quantized view() const { return {quants.get(), scales.get()}; }
  void check(int row, const std::vector<double>& right) const {
    const std::vector<float> values = test::fp8_values(quants), all_scales = test::download(scales);
    const float scale = all_scales[static_cast<size_t>(row)];
    double largest = 0;
    for (const double value : right) largest = std::max(largest, std::fabs(value));
    CHECK(std::fabs(scale - largest / 448) <= 0.01 * scale, "row ", row, " has the scale ", scale, ", not ", largest / 448);
    for (int i = 0; i < stride; i++) {
      const float value = values[static_cast<size_t>(row * stride + i)];
      const double wanted = i < columns ? right[static_cast<size_t>(i)] : 0;
      CHECK(std::fabs(value * scale - wanted) <= std::fabs(wanted) * 0x1.2p-4 + scale * 0x1.1p-10, "row ", row, " value ", i, ": ", value * scale, ", not ", wanted);
    }
  }

  int rows, stride, columns;
  DeviceArray<uint8_t> quants;
  DeviceArray<float> scales;
};

}  // namespace

TEST("norms of tokens and of samples are right, in bfloat16 and added") {
  test::need_gpu();
  Random random;
  for (const bool is_layer : {false, true})
    for (const int n : {16, 64, 576, 4096, 4544}) {
      const int tokens = random.between(1, 9);
      test::CudaStep step(tokens, 1);
      const std::vector<float> x = normals(random, static_cast<size_t>(tokens * n), 3), added = normals(random, x.size()), weight = normals(random, static_cast<size_t>(n)),
                               bias = normals(random, static_cast<size_t>(n));
      const auto d_x = test::upload(x), d_added = test::upload(added), d_weight = test::upload(weight), d_bias = test::upload(bias);
      DeviceArray<__nv_bfloat16> out(static_cast<size_t>(tokens * padded_columns(n)));
      const DeviceNorm norm{d_weight.get(), is_layer ? d_bias.get() : nullptr, is_layer, 1e-5f, n};
      normalize(nullptr, step.view(), Rows::tokens, norm, d_x.get(), n, out.get());
      add_normed(nullptr, step.view(), norm, d_added.get(), n, d_x.get());
      const std::vector<float> got = test::download(out), sums = test::download(d_x);
      for (int t = 0; t < tokens; t++) {
        const auto right = normed(x, static_cast<size_t>(t * n), n, weight, bias, is_layer, 1e-5);
        const auto at = got.begin() + t * padded_columns(n);
        check_near({at, at + n}, right, bf16_error, "norm");
        for (int i = n; i < padded_columns(n); i++) CHECK_EQUAL(at[i], 0.0f);
        auto sum = normed(added, static_cast<size_t>(t * n), n, weight, bias, is_layer, 1e-5);
        for (int i = 0; i < n; i++) sum[i] += x[static_cast<size_t>(t * n + i)];
        check_near({sums.begin() + t * n, sums.begin() + (t + 1) * n}, sum, f32_error, "sum");
      }
    }
}

TEST("a step begins with each token's embedding, and with what its slot sampled last where it has no id") {
  test::need_gpu();
  Random random;
  test::CudaStep step(4, 0, {0, 9, 3, 1});
  step.tokens[2].id = -1;
  step.write();
  const int hidden = 48, columns = padded_columns(hidden);
  std::vector<float> values = normals(random, static_cast<size_t>(300 * columns));
  std::vector<__nv_bfloat16> rounded(values.size());
  for (size_t i = 0; i < values.size(); i++) rounded[i] = __float2bfloat16_rn(values[i]);
  const auto embedding = test::upload(rounded);
  const auto last = test::upload(std::vector<int32_t>{7, 8, 250, 9});
  DeviceArray<int32_t> history(4 * 64);
  DeviceArray<float> x(static_cast<size_t>(4 * hidden));
  embed(nullptr, step.view(), {.embedding = embedding.get(), .hidden = hidden, .columns = columns, .scale = 2, .last_tokens = last.get(), .history = history.get(), .history_stride = 64, .x = x.get()});
  const std::vector<float> got = test::download(x);
  const std::vector<int32_t> ids = test::download(history);
  for (int t = 0; t < 4; t++) {
    const StepToken& token = step.tokens[static_cast<size_t>(t)];
    const int id = t == 2 ? 250 : token.id;
    CHECK_EQUAL(ids[static_cast<size_t>(token.slot * 64 + token.position)], id);
    for (int i = 0; i < hidden; i++) CHECK_EQUAL(got[static_cast<size_t>(t * hidden + i)], 2 * bf16(values[static_cast<size_t>(id * columns + i)]));
  }
}

TEST("gates have their activation and bias, from float32 and bfloat16") {
  test::need_gpu();
  Random random;
  for (const Activation activation : {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::clamped})
    for (const bool is_gated : {true, false})
      for (const bool is_float32 : {true, false}) {
        const int ffn = random.between(1, 40) * 16, tokens = 3, width = is_gated ? 2 * ffn : ffn;
        const bool has_bias = random.chance(0.5);
        std::vector<float> wide = normals(random, static_cast<size_t>(tokens * width), 4);
        const std::vector<float> bias = normals(random, static_cast<size_t>(width));
        std::vector<__nv_bfloat16> rounded;
        for (float& value : wide) rounded.push_back(__float2bfloat16_rn(value)), value = is_float32 ? value : bf16(value);
        const auto d_wide = test::upload(wide);
        const auto d_rounded = test::upload(rounded);
        const auto d_bias = test::upload(bias);
        DeviceArray<__nv_bfloat16> out(static_cast<size_t>(tokens * padded_columns(ffn)));
        gate(nullptr, tokens, {is_float32 ? static_cast<const void*>(d_wide.get()) : d_rounded.get(), is_float32, has_bias ? d_bias.get() : nullptr, activation, is_gated, ffn, out.get()});
        const std::vector<float> got = test::download(out);
        for (int t = 0; t < tokens; t++) {
          std::vector<double> right;
          for (int i = 0; i < ffn; i++) {
            const auto value = [&](int j) { return double{wide[static_cast<size_t>(t * width + j)]} + (has_bias ? bias[static_cast<size_t>(j)] : 0); };
            right.push_back(is_gated ? gated(activation, value(i), value(ffn + i)) : activated(activation, value(i)));
          }
          const auto at = got.begin() + t * padded_columns(ffn);
          check_near({at, at + ffn}, right, bf16_error, "gate");
        }
      }
}

TEST("norms and gates leave rows of E4M3 for matrices of that type") {
  test::need_gpu();
  Random random;
  for (const bool is_layer : {false, true})
    for (const int n : {16, 576, 4096, 4544}) {
      const int tokens = random.between(1, 9);
      test::CudaStep step(tokens, 1);
      const std::vector<float> x = normals(random, static_cast<size_t>(tokens * n), 3), weight = normals(random, static_cast<size_t>(n)), bias = normals(random, static_cast<size_t>(n));
      const auto d_x = test::upload(x), d_weight = test::upload(weight), d_bias = test::upload(bias);
      const QuantizedRows rows(tokens, n);
      normalize(nullptr, step.view(), {d_weight.get(), is_layer ? d_bias.get() : nullptr, is_layer, 1e-5f, n}, d_x.get(), n, rows.view());
      for (int t = 0; t < tokens; t++) rows.check(t, normed(x, static_cast<size_t>(t * n), n, weight, bias, is_layer, 1e-5));
    }
  for (const bool is_gated : {true, false})
    for (const int ffn : {16, 72, 1536, 14336, 20480}) {
      const int tokens = 3, width = is_gated ? 2 * ffn : ffn;
      std::vector<float> wide = normals(random, static_cast<size_t>(tokens * width), 4);
      std::vector<__nv_bfloat16> rounded;
      for (float& value : wide) rounded.push_back(__float2bfloat16_rn(value)), value = bf16(value);
      const auto d_wide = test::upload(rounded);
      const DeviceArray<__nv_bfloat16> out(static_cast<size_t>(tokens * padded_columns(ffn)));
      const QuantizedRows rows(tokens, ffn);
      gate(nullptr, tokens, {.wide = d_wide.get(), .is_float32 = false, .is_gated = is_gated, .ffn = ffn, .out = out.get(), .quantized = rows.view()});
      for (int t = 0; t < tokens; t++) {
        std::vector<double> right;
        for (int i = 0; i < ffn; i++) {
          const auto value = [&](int j) { return double{wide[static_cast<size_t>(t * width + j)]}; };
          right.push_back(is_gated ? gated(Activation::silu, value(i), value(ffn + i)) : activated(Activation::silu, value(i)));
        }
        rows.check(t, right);
      }
    }
}

TEST("rows in E4M3 are within its step of what they were") {
  test::need_gpu();
  Random random;
  const int rows = 37, columns = 192;
  std::vector<float> values = normals(random, static_cast<size_t>(rows * columns), 5);
  std::fill(values.begin(), values.begin() + columns, 0.0f);
  std::vector<__nv_bfloat16> rounded;
  for (float& value : values) rounded.push_back(__float2bfloat16_rn(value)), value = bf16(value);
  const auto x = test::upload(rounded);
  DeviceArray<uint8_t> quants(values.size());
  DeviceArray<float> scales(rows);
  quantize_rows(nullptr, x.get(), rows, columns, quants.get(), scales.get());
  const std::vector<float> got = test::fp8_values(quants), scale = test::download(scales);
  for (int r = 0; r < rows; r++) {
    float largest = 0;
    for (int c = 0; c < columns; c++) largest = std::max(largest, std::fabs(values[static_cast<size_t>(r * columns + c)]));
    CHECK(std::fabs(scale[static_cast<size_t>(r)] - (largest > 0 ? largest / 448 : 1)) <= 1e-6f * largest + 1e-30f, r);
    for (int c = 0; c < columns; c++) {
      const size_t at = static_cast<size_t>(r * columns + c);
      const float value = got[at] * scale[static_cast<size_t>(r)];
      CHECK(std::fabs(value - values[at]) <= std::max(std::fabs(values[at]) * 0x1.1p-4f, scale[static_cast<size_t>(r)] * 0x1.1p-10f), value, ", not ", values[at]);
    }
  }
}
