// Rows of other types as rows of the two quantized types that have bands. Each conversion says how much it lost.
#pragma once

#include "../format/types.h"

namespace millrace {

// Types whose blocks are 4-bit quants with a scale and a minimum for each 32 values, and those whose quants fit 8 bits with a scale.
bool converts_to_q4(Type type);
bool converts_to_q8(Type type);

// Converts `columns` values. The result is the largest error as a part of the row's widest span, the distance that a block's quants can
// cover: 0 for Q4_0, Q4_1, Q5_0, Q8_0, IQ4_NL and MXFP4, up to 2^-11 where a product of scales is rounded to float16 (Q4_K, IQ4_XS),
// infinity where a scale does not fit float16.
float convert_to_q4(Type type, const uint8_t* stored, int columns, BlockQ4_1* blocks);
float convert_to_q8(Type type, const uint8_t* stored, int columns, BlockQ8_0* blocks);

}  // namespace millrace
