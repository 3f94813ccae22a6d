// Blocks of 32 values with one scale, and perhaps a minimum.
#include "blocks.h"
#include "types.h"

namespace millrace {
namespace {

// The five bits of value i, of the two halves of 16 values.
int quant_of_five(const uint8_t (&high)[4], const uint8_t (&nibbles)[16], int i) {
  const int low = i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
  return low | ((high[i / 8] >> (i % 8)) & 1) << 4;
}

}  // namespace

void dequantize_block(const BlockQ4_0& block, float* values) {
  const float scale = half_to_float(block.scale);
  for (int i = 0; i < 16; i++) {
    values[i] = scale * static_cast<float>((block.nibbles[i] & 15) - 8);
    values[i + 16] = scale * static_cast<float>((block.nibbles[i] >> 4) - 8);
  }
}

void dequantize_block(const BlockQ4_1& block, float* values) {
  const float scale = half_to_float(block.scale), minimum = half_to_float(block.minimum);
  for (int i = 0; i < 16; i++) {
    values[i] = scale * static_cast<float>(block.nibbles[i] & 15) + minimum;
    values[i + 16] = scale * static_cast<float>(block.nibbles[i] >> 4) + minimum;
  }
}

void dequantize_block(const BlockQ5_0& block, float* values) {
  const float scale = half_to_float(block.scale);
  for (int i = 0; i < block_values; i++) values[i] = scale * static_cast<float>(quant_of_five(block.high, block.nibbles, i) - 16);
}

void dequantize_block(const BlockQ5_1& block, float* values) {
  const float scale = half_to_float(block.scale), minimum = half_to_float(block.minimum);
  for (int i = 0; i < block_values; i++) values[i] = scale * static_cast<float>(quant_of_five(block.high, block.nibbles, i)) + minimum;
}

void dequantize_block(const BlockQ8_0& block, float* values) {
  const float scale = half_to_float(block.scale);
  for (int i = 0; i < block_values; i++) values[i] = scale * static_cast<float>(block.quants[i]);
}

}  // namespace millrace
