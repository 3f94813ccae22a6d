// Matrices times few tokens against sums in double: small and crooked shapes in full, models' shapes in samples of their rows, in all types
// of weights. And what else they promise: the same bits in any company, nothing written beside the result, and order among kernels that
// begin before the one in front of them ends.
#include <cstring>
#include <utility>
#include <vector>

#include "cuda/stream_plan.h"
#include "support/cuda_product.h"

using namespace millrace;
using namespace millrace::test;

namespace {

Multiply stream(const StreamTuning& tuning = {}) {
  return [tuning](const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const MatmulOutput& output) { matmul_stream(nullptr, w, x, tokens, output, tuning); };
}

const std::vector<Stored> types = {Stored::bf16, Stored::fp8, Stored::q4};
const std::vector<int> token_counts = {1, 2, 5, 8, 9, 16, 33, 64};

}  // namespace

TEST("small matrices are right for any number of tokens, stored and added, with and without bias") {
  need_gpu();
  check_small_matrices(stream(), {types, token_counts, 400});
}

TEST("gates are right, with every activation") {
  need_gpu();
  check_gates(stream(), {types, token_counts, 200});
}

TEST("models' matrices are right") {
  need_gpu();
  Random random;
  for (const Stored type : types)
    for (const ProductShape& shape : model_shapes) {
      const Matrix matrix(random, type, shape.rows, shape.columns);
      for (const int count : {1, 8, 13, 32, 64}) check_products(stream(), random, matrix, count, {shape.kind, true}, 40);
    }
}

// What a token is answered must not depend on who else is in the step, nor on how the work was divided.
TEST("a token's bits are the same in any company, and however the matrix is divided") {
  need_gpu();
  Random random;
  const struct {
    int rows, columns;
    Kind kind;
  } shapes[] = {{2048, 2048, Kind::store}, {6144, 1024, Kind::add}, {2 * 5000, 1088, Kind::gate}, {300, 4544, Kind::store}};
  StreamTuning small, apart, large;
  small.ring_bytes = small.wide_ring_bytes = 40 << 10;
  small.tile_blocks_max = 1;
  apart.peers_tokens_min = stream_tokens_max + 1;
  apart.tile_blocks_max = 3;
  large.peers_tokens_min = 1;
  large.ring_bytes = 150 << 10;
  for (const Stored type : types)
    for (const auto& shape : shapes) {
      const Matrix matrix(random, type, shape.rows, shape.columns);
      const Tokens tokens(random, shape.columns, activations_of(type));
      const int width = shape.kind == Kind::gate ? shape.rows / 2 : shape.rows;
      const Form form{shape.kind, true};
      const auto old = before(random, shape.kind, width), all = multiply(stream(), matrix, tokens, stream_tokens_max, form, old);
      for (const StreamTuning& tuning : {StreamTuning{}, small, apart, large})
        for (const int count : {1, 8, 9, 17, 32, 33, 64}) {
          const auto some = multiply(stream(tuning), matrix, tokens, count, form, old);
          const auto end = some.begin() + static_cast<std::ptrdiff_t>(count) * stride_of(width);
          CHECK(std::equal(some.begin(), end, all.begin()), "differs for ", count, " tokens");
        }
    }
}

// Each kernel reads what the one in front of it writes, and is begun before that has ended.
TEST("kernels that begin early wait for what they read, and repeat their bits") {
  need_gpu();
  Random random;
  constexpr int hidden = 1024, ffn = 2816, layers = 6, repeats = 20;
  cudaStream_t stream;  // the default one may have rules of its own; the process ends with it
  check(cudaStreamCreate(&stream), "creating a stream");
  for (const Stored type : types) {
    std::vector<Matrix> gates, downs;
    for (int i = 0; i < layers; i++) {
      gates.emplace_back(random, type, 2 * ffn, hidden);
      downs.emplace_back(random, type, 2 * ffn, ffn);
    }
    for (const int count : {1, 16, 40, 64}) {
      const Activations as = activations_of(type);
      const Tokens tokens(random, hidden, as);
      const auto x = tokens.upload_first(count);
      const DeviceArray<__nv_bfloat16> wide(static_cast<size_t>(stream_tokens_max) * ffn), next(wide.count());
      const DeviceArray<float> sums(static_cast<size_t>(stream_tokens_max) * 2 * ffn);
      const auto run = [&](bool waits) {
        check(cudaMemset(sums.get(), 0, sums.bytes()), "clearing");
        for (int i = 0; i < layers; i++) {
          const auto* input = reinterpret_cast<const __nv_bfloat16*>(x.get());
          matmul_stream(stream, gates[static_cast<size_t>(i)].device(), input, count, {.kind = Kind::gate, .y = wide.get(), .stride = ffn, .as = as});
          if (waits) check(cudaDeviceSynchronize(), "waiting");
          matmul_stream(stream, downs[static_cast<size_t>(i)].device(), wide.get(), count, {.kind = Kind::gate, .y = next.get(), .stride = ffn, .as = as});
          if (waits) check(cudaDeviceSynchronize(), "waiting");
          matmul_stream(stream, downs[static_cast<size_t>(i)].device(), next.get(), count, {.kind = Kind::add, .y = sums.get(), .stride = 2 * ffn});
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
