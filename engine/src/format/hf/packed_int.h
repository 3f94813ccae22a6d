// Weights of small integers, several to a 32-bit word, with a scale and a zero point for each group of columns:
// value = scale * (quant - zero).
#pragma once

#include "quantized.h"

namespace millrace {

// GPTQ: words pack eight rows of the transposed matrix, [columns / 8][rows]; g_idx, if any, names each column's group.
Result<FileTensor> read_gptq(const HfQuantization& quantization, const Parameters& parameters);
// AWQ (gemm): words pack eight of the matrix's rows, [columns][rows / 8], in an order of their own.
Result<FileTensor> read_awq(const HfQuantization& quantization, const Parameters& parameters);
// compressed-tensors (pack-quantized): words pack eight columns, [rows][columns / 8]; without zero points the middle of the range is 0.
Result<FileTensor> read_packed(const HfQuantization& quantization, const Parameters& parameters);

}  // namespace millrace
