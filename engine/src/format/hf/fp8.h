// Weights of 8-bit floats (E4M3, finite only) times a float32 scale.
#pragma once

#include "quantized.h"

namespace millrace {

// 1 sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, and one magnitude that is no number.
float e4m3_to_float(uint8_t bits);

// `weight` times `weight_scale` or `weight_scale_inv` (which multiplies too, whatever its name says): one for all, one a row, or one a
// block of the quantization's size.
Result<FileTensor> read_fp8(const HfQuantization& quantization, const Parameters& parameters);

}  // namespace millrace
