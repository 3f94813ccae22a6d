// Blocks whose four bits look their values up in a table.
#include <bit>

#include "blocks.h"
#include "types.h"

namespace millrace {

const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int8_t mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

namespace {

void look_up(const int8_t (&table)[16], const uint8_t (&nibbles)[16], float scale, float* values) {
  for (int i = 0; i < 16; i++) {
    values[i] = scale * static_cast<float>(table[nibbles[i] & 15]);
    values[i + 16] = scale * static_cast<float>(table[nibbles[i] >> 4]);
  }
}

}  // namespace

int sub_scale(const BlockIQ4_XS& block, int sub_block) {
  const int low = (block.scales_low[sub_block / 2] >> (sub_block % 2 * 4)) & 15, high = (block.scales_high >> (2 * sub_block)) & 3;
  return (low | high << 4) - 32;
}

float mxfp4_scale(uint8_t exponent) {
  // The two lowest are subnormal.
  return std::bit_cast<float>(exponent < 2 ? 0x00200000u << exponent : (exponent - 1u) << 23);
}

void dequantize_block(const BlockIQ4_NL& block, float* values) { look_up(iq4_values, block.nibbles, half_to_float(block.scale), values); }

void dequantize_block(const BlockIQ4_XS& block, float* values) {
  const float scale = half_to_float(block.scale);
  for (int sub = 0; sub < 8; sub++) look_up(iq4_values, block.nibbles[sub], scale * static_cast<float>(sub_scale(block, sub)), values + 32 * sub);
}

void dequantize_block(const BlockMXFP4& block, float* values) { look_up(mxfp4_values, block.nibbles, mxfp4_scale(block.exponent), values); }

}  // namespace millrace
