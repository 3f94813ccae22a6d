// Matrices times tokens on a GPU against sums in double: random matrices of all stored types, what they are multiplied by, and what results may be off by.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/memory.h"
#include "cuda_q4.h"
#include "cuda_step.h"
#include "random.h"
#include "test.h"

namespace millrace::test {

using Stored = DeviceMatrix::Type;
using Kind = MatmulOutput::Kind;

constexpr int tokens_max = wide_tokens_max, rows_behind = 64;  // that may be read; they hold NaNs here
// Of the norm of all results, and of the sum of a result's absolute products. bfloat16 rounds a result by up to 2^-9.
constexpr double norm_error_max = 1e-4, error_max = 1e-5, rounded_error_max = 0x1p-8;

inline float float_of_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9) : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return bits & 0x80 ? -size : size;
}

inline double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::clamped:
      break;
  }
  const double gate = std::min(x, double{clamped_limit});
  return gate / (1 + std::exp(-double{clamped_alpha} * gate));
}
inline double gated(Activation activation, double gate, double up) {
  if (activation == Activation::clamped) up = std::clamp(up, -double{clamped_limit}, double{clamped_limit}) + 1;
  return activated(activation, gate) * up;
}

// A random matrix on both sides, whose results for random tokens are of about the size of 1, and a bias.
class Matrix {
 public:
  Matrix(Random& random, Stored type, int rows, int columns) : type_(type), rows_(rows), columns_(columns) {
    bias_ = random.normals(rows);
    device_bias_ = upload(bias_);
    const size_t behind = rows_behind * static_cast<size_t>(columns);
    if (type == Stored::q4) {
      bytes_ = random_q4(random, rows, columns);
      values_ = placed(bytes_, rows_behind * static_cast<size_t>(q4_row_bytes(columns)));
      return;
    }
    // Drawing each value would take longer than all else here: they are drawn from a table.
    std::vector<uint16_t> table(1 << 16);
    for (uint16_t& value : table) value = type == Stored::bf16 ? bfloat_of(random.normal() / std::sqrt(static_cast<float>(columns))) : any_e4m3(random);
    const size_t count = static_cast<size_t>(rows) * static_cast<size_t>(columns);
    if (type == Stored::bf16)
      values_ = fill(random, table, words_, count, behind);
    else
      values_ = fill(random, table, bytes_, count, behind);
    for (int r = 0; r < rows; r++) scales_.push_back(static_cast<float>((0.5 + random.uniform()) / (100 * std::sqrt(columns))));
    device_scales_ = upload(scales_);
  }

  DeviceMatrix device() const { return {type_, values_.get(), type_ == Stored::fp8 ? device_scales_.get() : nullptr, rows_, columns_}; }
  const float* device_bias() const { return device_bias_.get(); }
  float bias(int row) const { return bias_[static_cast<size_t>(row)]; }
  int rows() const { return rows_; }
  int columns() const { return columns_; }

  // The product, and the sum of its terms' sizes.
  std::pair<double, double> dot(int row, const float* x) const {
    const std::vector<float>& values = row_of(row);
    double sum = 0, size = 0;
    for (size_t c = 0; c < values.size(); c++) {
      const double product = double{values[c]} * x[c];
      sum += product;
      size += std::fabs(product);
    }
    const double scale = type_ == Stored::fp8 ? scales_[static_cast<size_t>(row)] : 1;
    return {sum * scale, size * scale};
  }

 private:
  float value(int row, int column) const {
    const size_t at = static_cast<size_t>(row) * static_cast<size_t>(columns_) + static_cast<size_t>(column);
    if (type_ == Stored::q4) return q4_value(bytes_, columns_, row, column).as_half();
    return type_ == Stored::bf16 ? float_of(words_[at]) : e4m3_values()[bytes_[at]];
  }
  // Each row's values are looked up once.
  const std::vector<float>& row_of(int row) const {
    std::vector<float>& values = rows_seen_[row];
    for (int c = static_cast<int>(values.size()); c < columns_; c++) values.push_back(value(row, c));
    return values;
  }
  static uint16_t any_e4m3(Random& random) {
    const auto bits = static_cast<uint16_t>(random.next() & 0xff);
    return (bits & 0x7f) == 0x7f ? uint16_t{0} : bits;
  }
  static const std::vector<float>& e4m3_values() {
    static const std::vector<float> values = [] {
      std::vector<float> all;
      for (int bits = 0; bits < 256; bits++) all.push_back(float_of_e4m3(static_cast<uint8_t>(bits)));
      return all;
    }();
    return values;
  }
  template <typename Value>
  static DeviceArray<uint8_t> fill(Random& random, const std::vector<uint16_t>& table, std::vector<Value>& values, size_t count, size_t behind) {
    values.resize(count);
    for (size_t i = 0; i < count; i += 4) {
      const uint64_t drawn = random.next();
      for (size_t j = 0; j < 4; j++) values[i + j] = static_cast<Value>(table[drawn >> 16 * j & 0xffff]);
    }
    return placed(values, behind);
  }
  template <typename Value>
  static DeviceArray<uint8_t> placed(const std::vector<Value>& values, size_t behind) {
    DeviceArray<uint8_t> device((values.size() + behind) * sizeof(Value));
    check(cudaMemset(device.get(), 0xff, device.bytes()), "poisoning");
    check(cudaMemcpy(device.get(), values.data(), values.size() * sizeof(Value), cudaMemcpyHostToDevice), "copying weights");
    return device;
  }

  Stored type_;
  int rows_, columns_;
  std::vector<uint16_t> words_;
  std::vector<uint8_t> bytes_;
  std::vector<float> scales_, bias_;
  mutable std::map<int, std::vector<float>> rows_seen_;
  DeviceArray<uint8_t> values_;
  DeviceArray<float> device_scales_, device_bias_;
};

// What a matrix reads, and then what it leaves where that is narrow.
inline Activations activations_of(Stored type) { return type == Stored::bf16 ? Activations::bfloat16 : Activations::half; }
inline uint16_t narrowed(float value, Activations as) { return as == Activations::bfloat16 ? bfloat_of(value) : __half_as_ushort(__float2half(value / half_divisor)); }
inline float widened(uint16_t bits, Activations as) { return as == Activations::bfloat16 ? float_of(bits) : half_divisor * __half2float(__ushort_as_half(bits)); }

// Where a column's value lies, and whose value lies in a place.
inline int placed(int column, Activations as) { return as == Activations::half ? half_place(column) : column; }
inline int column_at(int place, Activations as) { return as == Activations::half ? place / 16 * 16 + place % 8 / 2 * 4 + place % 16 / 8 * 2 + place % 2 : place; }

// Random tokens, as many as any kernel takes, of which the device has as many as are asked for; NaNs follow.
class Tokens {
 public:
  Tokens(Random& random, int columns, Activations as) : columns_(columns), as_(as), bits_(static_cast<size_t>(tokens_max) * static_cast<size_t>(columns)) {
    for (uint16_t& bits : bits_) values_.push_back(widened(bits = narrowed(random.normal(), as), as));
  }
  const float* of(int token) const { return values_.data() + static_cast<size_t>(token) * static_cast<size_t>(columns_); }
  DeviceArray<uint16_t> upload_first(int tokens) const {
    std::vector<uint16_t> some(bits_.size(), uint16_t{0xffff});
    for (int t = 0; t < tokens; t++)
      for (int c = 0; c < columns_; c++) some[static_cast<size_t>(t * columns_ + placed(c, as_))] = bits_[static_cast<size_t>(t * columns_ + c)];
    return upload(some);
  }

 private:
  int columns_;
  Activations as_;
  std::vector<uint16_t> bits_;
  std::vector<float> values_;
};

struct Form {
  Kind kind = Kind::store;
  bool has_bias = false;
  Activation activation = Activation::silu;
};

// The kernel under test.
using Multiply = std::function<void(const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const MatmulOutput& output)>;

// Results for tokens_max tokens as the device has them, [tokens_max][stride]: float32, or what is narrow in their upper halves. All that `before` holds where
// nothing is written stays.
constexpr int stride_of(int width) { return (width + 15) / 16 * 16 + 5; }
inline std::vector<uint32_t> multiply(const Multiply& kernel, const Matrix& matrix, const Tokens& tokens, int count, const Form& form, const std::vector<uint32_t>& before) {
  const int width = form.kind == Kind::gate ? matrix.rows() / 2 : matrix.rows();
  const auto x = tokens.upload_first(count);
  MatmulOutput output{.kind = form.kind, .stride = stride_of(width), .activation = form.activation, .as = activations_of(matrix.device().type)};
  if (form.has_bias) output.bias = matrix.device_bias();
  const auto run = [&](void* y) {
    output.y = y;
    kernel(matrix.device(), reinterpret_cast<const __nv_bfloat16*>(x.get()), count, output);
    check(cudaDeviceSynchronize(), "multiplying");
  };
  if (form.kind != Kind::gate) {
    const auto y = upload(before);
    run(y.get());
    return download(y);
  }
  std::vector<uint16_t> narrow(before.size());
  std::ranges::transform(before, narrow.begin(), [](uint32_t bits) { return static_cast<uint16_t>(bits >> 16); });
  const auto y = upload(narrow);
  run(y.get());
  std::vector<uint32_t> results(before.size());
  std::ranges::transform(download(y), results.begin(), [](uint16_t bits) { return uint32_t{bits} << 16; });
  return results;
}

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// What lies in the results' place before: numbers where they are added to, NaNs elsewhere.
inline std::vector<uint32_t> before(Random& random, Kind kind, int width) {
  std::vector<uint32_t> values(static_cast<size_t>(tokens_max * stride_of(width)), 0xffffffffu);
  if (kind != Kind::add) return values;
  for (uint32_t& bits : values) {
    const float value = random.normal();
    std::memcpy(&bits, &value, sizeof bits);
  }
  return values;
}

// All of the rows, or the first and last ones and some between.
inline std::vector<int> sampled_rows(Random& random, int width, int samples) {
  std::vector<int> rows;
  for (int r = 0; r < width; r++)
    if (width <= samples || r < samples / 4 || r >= width - samples / 4) rows.push_back(r);
  while (static_cast<int>(rows.size()) < std::min(width, samples)) rows.push_back(random.between(0, width - 1));
  return rows;
}

inline void check_products(const Multiply& kernel, Random& random, const Matrix& matrix, int count, const Form& form, int samples) {
  const int width = form.kind == Kind::gate ? matrix.rows() / 2 : matrix.rows();
  const Activations as = activations_of(matrix.device().type);
  const Tokens tokens(random, matrix.columns(), as);
  const auto old = before(random, form.kind, width), y = multiply(kernel, matrix, tokens, count, form, old);
  const auto bias = [&](int row) { return form.has_bias ? double{matrix.bias(row)} : 0.0; };
  double errors = 0, norm = 0;
  int wrong = 0, touched = 0;
  const std::vector<int> rows = sampled_rows(random, width, samples);
  for (int t = 0; t < count; t++)
    for (const int row : rows) {
      const bool is_gate = form.kind == Kind::gate;
      const size_t at = static_cast<size_t>(t * stride_of(width) + (is_gate ? placed(row, as) : row));
      const auto [sum, size] = matrix.dot(row, tokens.of(t));
      double expected = sum + bias(row), allowed = error_max * (size + 1);
      if (form.kind == Kind::add) expected += as_float(old[at]);
      if (is_gate) {
        const auto [up, up_size] = matrix.dot(width + row, tokens.of(t));
        const double gate = expected, factor = up + bias(width + row);
        expected = gated(form.activation, gate, factor);
        const double sums_allowed = (size + 1) * (std::fabs(factor) + 2) + (up_size + 1) * (std::fabs(gate) + 1);
        allowed = rounded_error_max * std::fabs(expected) + 2 * error_max * sums_allowed;
      }
      const double result = is_gate ? widened(static_cast<uint16_t>(y[at] >> 16), as) : as_float(y[at]);
      const double error = std::fabs(result - expected);
      wrong += !(error <= allowed);
      errors += error * error;
      norm += expected * expected;
    }
  for (int t = 0; t < tokens_max; t++)
    for (int i = 0; i < stride_of(width); i++) {
      if (t < count && (form.kind == Kind::gate ? column_at(i, as) : i) < width) continue;
      const size_t at = static_cast<size_t>(t * stride_of(width) + i);
      touched += y[at] != (form.kind == Kind::gate ? old[at] & 0xffff0000u : old[at]);
    }
  const double error = std::sqrt(errors / norm), error_limit = form.kind == Kind::gate ? rounded_error_max : norm_error_max;
  const auto type = show(matrix.device().type), kind = show(form.kind), activation = show(form.activation);
  const auto what = sentence("rows, columns, type, tokens, kind, bias, activation", matrix.rows(), ", ", matrix.columns(), ", ", type, ", ", count, ", ",
                                   kind, ", ", form.has_bias, ", ", activation);
  CHECK(wrong == 0, wrong, " results are off by more than their products allow; ", what);
  CHECK(error <= error_limit, error, " of the norm; ", what);
  CHECK(touched == 0, touched, " values beside the results were written; ", what);
}


// What every kernel of matrices is held to, for its types and numbers of tokens: small and crooked matrices, gates, and, of models' shapes, a sample of rows.
struct ProductCases {
  std::vector<Stored> types;
  std::vector<int> token_counts;
  int samples = 200;  // results a token
};
struct ProductShape {
  int rows, columns;
  Kind kind;
};
constexpr ProductShape model_shapes[] = {{6144, 4096, Kind::store}, {4096, 14336, Kind::add},  {2 * 14336, 4096, Kind::gate}, {49152, 576, Kind::store},
                                         {576, 1536, Kind::add},    {2 * 1536, 576, Kind::gate}, {4544, 4544, Kind::store},     {2048, 2048, Kind::add}};

inline void check_small_matrices(const Multiply& kernel, const ProductCases& cases) {
  Random random;
  const std::pair<int, int> shapes[] = {{16, 64}, {48, 64}, {96, 128}, {300, 64}, {7, 192}, {4100, 320}};
  for (const Stored type : cases.types)
    for (const auto& [rows, columns] : shapes) {
      const Matrix matrix(random, type, rows, columns);
      for (const int count : cases.token_counts)
        for (const Kind kind : {Kind::store, Kind::add}) check_products(kernel, random, matrix, count, {kind, random.chance(0.5)}, cases.samples);
    }
}

inline void check_gates(const Multiply& kernel, const ProductCases& cases) {
  Random random;
  const std::pair<int, int> shapes[] = {{2 * 16, 64}, {2 * 100, 192}, {2 * 1000, 256}, {2 * 3, 64}};
  for (const Stored type : cases.types)
    for (const auto& [rows, columns] : shapes) {
      if (type == Stored::q4 && rows / 2 % q4_rows != 0) continue;  // such gates are not kept in four bits
      const Matrix matrix(random, type, rows, columns);
      for (const int count : cases.token_counts)
        for (const Activation activation : {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::clamped})
          check_products(kernel, random, matrix, count, {Kind::gate, random.chance(0.5), activation}, cases.samples);
    }
}

}  // namespace millrace::test
