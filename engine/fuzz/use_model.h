// What an engine does with a model that was opened: its vocabulary, its operators, and rows of every tensor.
#pragma once

#include <vector>

#include "format/model_file.h"
#include "format/vocabulary.h"
#include "model/model.h"

namespace millrace::fuzz {

constexpr int64_t values_max = 1 << 16, rows_max = 64;

inline void use_model(const ModelFile& file) {
  const auto vocabulary = read_vocabulary(file);
  const auto model = read_model(file);
  for (const FileTensor& tensor : file.tensors()) {
    if (tensor.columns() > values_max) continue;
    std::vector<float> values(static_cast<size_t>(tensor.columns()));
    // The first rows and the last, where ends lie.
    for (int64_t row = 0; row < tensor.rows(); row += row + 1 == rows_max && tensor.rows() > 2 * rows_max ? tensor.rows() - 2 * rows_max : 1)
      read_row(tensor, row, values.data());
  }
}

}  // namespace millrace::fuzz
