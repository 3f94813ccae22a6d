// The sets of kernels that this machine can run, and inputs for them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "random.h"
#include "test.h"
#include "tiny_model.h"

namespace millrace::test {

// The set, or the test ends as not run: the CPU lacks it.
inline const Kernels& kernels_or_skip(KernelSet set) {
  const Kernels* kernels = kernels_of(set, inspect_machine());
  if (kernels == nullptr) throw Skipped{set == KernelSet::avx512 ? "CPU lacks AVX-512 with VNNI" : "CPU lacks AVX2 with FMA and F16C"};
  return *kernels;
}

// A tensor with random values in memory of its own, no byte longer than it is.
struct HeldTensor {
  FileTensor tensor;
  std::unique_ptr<uint8_t[]> bytes;

  HeldTensor(Random& random, Type type, int rows, int columns, float scale) {
    const std::string stored = random_values(random, type, int64_t{rows} * columns, scale);
    bytes = std::make_unique<uint8_t[]>(stored.size());
    std::copy(stored.begin(), stored.end(), bytes.get());
    tensor.name = "held";
    tensor.type = type;
    tensor.shape = {columns, rows, 1, 1};
    tensor.bytes = bytes.get();
  }
  std::vector<float> row(int index) const {
    std::vector<float> values(static_cast<size_t>(tensor.columns()));
    dequantize(tensor.type, tensor.row(index), tensor.columns(), values.data());
    return values;
  }
};

// Random activations of `tokens` tokens, quantized by the reference.
struct HeldActivations {
  int tokens, columns;
  std::vector<float> values, scales, sums;
  std::vector<int8_t> quants;
  std::vector<int32_t> totals;

  HeldActivations(Random& random, int tokens_of, int columns_of) : tokens(tokens_of), columns(columns_of), values(random.normals(tokens * columns)) {
    const size_t blocks = static_cast<size_t>(tokens) * static_cast<size_t>(columns / block_values);
    scales.resize(blocks);
    sums.resize(blocks);
    totals.resize(blocks);
    quants.resize(values.size());
    reference_kernels.quantize(values.data(), tokens * (columns / block_values * block_values), {quants.data(), scales.data(), sums.data(), totals.data()});
  }
  Activations view() const { return {values.data(), quants.data(), scales.data(), sums.data(), totals.data(), columns}; }
  // Token t alone.
  Activations view(int t) const {
    const int64_t block = int64_t{t} * (columns / block_values);
    return {&values[int64_t{t} * columns], &quants[int64_t{t} * columns], &scales[block], &sums[block], &totals[block], columns};
  }
  // What a matrix sees of column c of token t.
  double seen(int t, int c, bool quantized) const {
    const size_t at = static_cast<size_t>(t) * static_cast<size_t>(columns) + static_cast<size_t>(c);
    return quantized ? double{scales[at / block_values]} * quants[at] : double{values[at]};
  }
};

}  // namespace millrace::test
