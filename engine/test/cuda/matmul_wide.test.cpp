// Matrices times some more tokens against sums in double: shapes small, crooked and of models, both types of weights, every division of the columns. And what else they
// promise: norms taken and left, the same bits each time, and order among kernels that begin before the one in front of them ends.
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "cuda/wide_plan.h"
#include "support/cuda_product.h"

using namespace millrace;
using namespace millrace::test;

namespace {

Multiply wide(int splits = 0) {
  return [splits](const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const MatmulOutput& output) { matmul_wide(nullptr, w, x, tokens, output, {.splits = splits}); };
}

const std::vector<Stored> types = {Stored::bf16, Stored::fp8};
const std::vector<int> token_counts = {1, 8, 17, 32, 33, 64, 65, 96, 100, 128};

}  // namespace

TEST("small matrices are right for any number of tokens, stored and added, with and without bias") {
  need_gpu();
  check_small_matrices(wide(), {types, token_counts, 200});
}

TEST("gates are right, with every activation") {
  need_gpu();
  check_gates(wide(), {types, token_counts, 100});
}

TEST("models' matrices are right, their columns divided or not") {
  need_gpu();
  Random random;
  for (const Stored type : types)
    for (const ProductShape& shape : model_shapes) {
      const Matrix matrix(random, type, shape.rows, shape.columns);
      for (const int count : {32, 61, 96, 128}) check_products(wide(), random, matrix, count, {shape.kind, true}, 20);
      for (const int splits : {1, 2, 3, 4})
        if (shape.rows <= 6144) check_products(wide(splits), random, matrix, 64, {shape.kind, true}, 20);
    }
}

// Who writes the residual stream leaves its norm, and who reads it multiplies by the token's factor.
TEST("a norm is taken from squares, and left with them") {
  need_gpu();
  Random random;
  constexpr int hidden = 1024, width = 2048, count = 100;
  constexpr float epsilon = 1e-5f;
  for (const Stored type : types) {
    const Activations as = activations_of(type);
    const Matrix matrix(random, type, width, hidden);
    const Tokens tokens(random, hidden, as);
    const auto x = tokens.upload_first(count);
    std::vector<float> squares(static_cast<size_t>(count) * (hidden / square_values));
    for (float& each : squares) each = static_cast<float>(8 + 16 * random.uniform());
    const std::vector<float> weights = random.normals(width), old(static_cast<size_t>(count) * width, 0.5f);
    const auto device_squares = upload(squares), device_weights = upload(weights), y = upload(old);
    const DeviceArray<__nv_bfloat16> left(static_cast<size_t>(count) * width);
    const DeviceArray<float> left_squares(static_cast<size_t>(count) * (width / square_values));
    MatmulOutput output{.kind = Kind::add, .y = y.get(), .stride = width};
    output.norm = {device_squares.get(), hidden / square_values, hidden, epsilon};
    output.next = {device_weights.get(), left.get(), width, left_squares.get(), as};
    matmul_wide(nullptr, matrix.device(), reinterpret_cast<const __nv_bfloat16*>(x.get()), count, output);
    check(cudaDeviceSynchronize(), "multiplying");
    const auto results = download(y), sums = download(left_squares);
    std::vector<uint16_t> bits(left.count());
    check(cudaMemcpy(bits.data(), left.get(), left.bytes(), cudaMemcpyDeviceToHost), "reading");
    int wrong = 0;
    for (int t = 0; t < count; t++) {
      double mean = 0;
      for (int i = 0; i < hidden / square_values; i++) mean += squares[static_cast<size_t>(t * (hidden / square_values) + i)] / hidden;
      const double factor = 1 / std::sqrt(mean + epsilon);
      for (int row = t % 7; row < width; row += 7) {
        const auto [sum, size] = matrix.dot(row, tokens.of(t));
        wrong += !(std::fabs(results[static_cast<size_t>(t * width + row)] - (0.5 + sum * factor)) <= 2 * error_max * (size * factor + 1));
      }
      for (int group = 0; group < width / square_values; group++) {
        double square = 0;
        for (int i = 0; i < square_values; i++) {
          const int row = group * square_values + i;
          const double value = results[static_cast<size_t>(t * width + row)], expected = value * weights[static_cast<size_t>(row)];
          square += value * value;
          wrong += !(std::fabs(widened(bits[static_cast<size_t>(t * width + placed(row, as))], as) - expected) <= rounded_error_max * std::fabs(expected) + 1e-6);
        }
        wrong += !(std::fabs(sums[static_cast<size_t>(t * (width / square_values) + group)] - square) <= 1e-5 * square);
      }
    }
    CHECK(wrong == 0, wrong, " values are wrong; ", show(type));
  }
}

// Each kernel reads what the one in front of it writes, and is begun before that has ended.
TEST("kernels that begin early wait for what they read, and repeat their bits") {
  need_gpu();
  Random random;
  constexpr int hidden = 2048, ffn = 5632, layers = 6, repeats = 20;
  cudaStream_t stream;  // the default one may have rules of its own; the process ends with it
  check(cudaStreamCreate(&stream), "creating a stream");
  for (const Stored type : types) {
    std::vector<Matrix> gates, downs;
    for (int i = 0; i < layers; i++) {
      gates.emplace_back(random, type, 2 * ffn, hidden);
      downs.emplace_back(random, type, hidden, ffn);
    }
    for (const int count : {20, 64, 128}) {
      const Activations as = activations_of(type);
      const auto x = Tokens(random, hidden, as).upload_first(count);
      const DeviceArray<__nv_bfloat16> between(static_cast<size_t>(count) * ffn), next(static_cast<size_t>(count) * hidden);
      const DeviceArray<float> sums(static_cast<size_t>(count) * hidden), squares(static_cast<size_t>(count) * (hidden / square_values));
      const auto ones = upload(std::vector<float>(hidden, 1.0f));
      const auto run = [&](bool waits) {
        check(cudaMemset(sums.get(), 0, sums.bytes()), "clearing");
        for (int i = 0; i < layers; i++) {
          const auto* input = i == 0 ? reinterpret_cast<const __nv_bfloat16*>(x.get()) : next.get();
          MatmulOutput gate{.kind = Kind::gate, .y = between.get(), .stride = ffn, .as = as}, down{.kind = Kind::add, .y = sums.get(), .stride = hidden};
          if (i > 0) gate.norm = {squares.get(), hidden / square_values, hidden, 1e-5f};
          down.next = {ones.get(), next.get(), hidden, squares.get(), as};
          matmul_wide(stream, gates[static_cast<size_t>(i)].device(), input, count, gate);
          if (waits) check(cudaDeviceSynchronize(), "waiting");
          matmul_wide(stream, downs[static_cast<size_t>(i)].device(), between.get(), count, down);
          if (waits) check(cudaDeviceSynchronize(), "waiting");
        }
        check(cudaStreamSynchronize(stream), "waiting");
        const auto results = download(sums);
        std::vector<uint32_t> bits(results.size());
        std::memcpy(bits.data(), results.data(), results.size() * sizeof(float));
        return bits;
      };
      const auto expected = run(true);
      int different = 0;
      for (int i = 0; i < repeats; i++) different += run(false) != expected;
      CHECK(different == 0, different, " of ", repeats, " runs differ for ", count, " tokens");
    }
  }
}
