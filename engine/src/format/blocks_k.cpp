// K-quants: blocks of 256 values whose sub-blocks have quantized scales.
#include "blocks.h"
#include "types.h"

namespace millrace {
namespace {

// The two bits of value i: 128 values to 32 bytes.
int two_bits(const uint8_t (&quants)[64], int i) { return (quants[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3; }

// The bit of value i: bit i / 32 of byte i % 32.
int one_bit(const uint8_t (&bits)[32], int i) { return (bits[i % 32] >> (i / 32)) & 1; }

// The four bits of value i: 64 values to 32 bytes.
int four_bits(const uint8_t (&quants)[128], int i) { return (quants[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4)) & 15; }

}  // namespace

SubScale sub_scale(const uint8_t (&scales)[12], int sub_block) {
  if (sub_block < 4) return {static_cast<uint8_t>(scales[sub_block] & 63), static_cast<uint8_t>(scales[sub_block + 4] & 63)};
  // Bytes 8 to 11 have the lower four bits of both; the upper two are the upper two bits of bytes 0 to 7.
  const int j = sub_block - 4;
  return {static_cast<uint8_t>((scales[j + 8] & 15) | (scales[j] >> 6) << 4), static_cast<uint8_t>((scales[j + 8] >> 4) | (scales[j + 4] >> 6) << 4)};
}

void dequantize_block(const BlockQ2_K& block, float* values) {
  const float scale = half_to_float(block.scale), minimum = half_to_float(block.minimum);
  for (int sub = 0; sub < 16; sub++) {
    const float step = scale * static_cast<float>(block.scales[sub] & 15), low = minimum * static_cast<float>(block.scales[sub] >> 4);
    for (int i = 16 * sub; i < 16 * sub + 16; i++) values[i] = step * static_cast<float>(two_bits(block.quants, i)) - low;
  }
}

void dequantize_block(const BlockQ3_K& block, float* values) {
  const float scale = half_to_float(block.scale);
  for (int sub = 0; sub < 16; sub++) {
    const int low = sub < 8 ? block.scales[sub] & 15 : block.scales[sub - 8] >> 4;
    const int high = (block.scales[8 + sub % 4] >> (sub / 4 * 2)) & 3;
    const float step = scale * static_cast<float>((low | high << 4) - 32);
    for (int i = 16 * sub; i < 16 * sub + 16; i++)
      values[i] = step * static_cast<float>(two_bits(block.quants, i) - (one_bit(block.high, i) ? 0 : 4));
  }
}

void dequantize_block(const BlockQ4_K& block, float* values) {
  const float scale = half_to_float(block.scale), minimum = half_to_float(block.minimum);
  for (int sub = 0; sub < 8; sub++) {
    const SubScale own = sub_scale(block.scales, sub);
    const float step = scale * static_cast<float>(own.scale), low = minimum * static_cast<float>(own.minimum);
    for (int i = 32 * sub; i < 32 * sub + 32; i++) values[i] = step * static_cast<float>(four_bits(block.quants, i)) - low;
  }
}

void dequantize_block(const BlockQ5_K& block, float* values) {
  const float scale = half_to_float(block.scale), minimum = half_to_float(block.minimum);
  for (int sub = 0; sub < 8; sub++) {
    const SubScale own = sub_scale(block.scales, sub);
    const float step = scale * static_cast<float>(own.scale), low = minimum * static_cast<float>(own.minimum);
    for (int i = 32 * sub; i < 32 * sub + 32; i++)
      values[i] = step * static_cast<float>(four_bits(block.quants, i) | one_bit(block.high, i) << 4) - low;
  }
}

void dequantize_block(const BlockQ6_K& block, float* values) {
  const float scale = half_to_float(block.scale);
  for (int sub = 0; sub < 16; sub++) {
    const float step = scale * static_cast<float>(block.scales[sub]);
    for (int i = 16 * sub; i < 16 * sub + 16; i++) {
      const int low = (block.low[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4)) & 15;
      values[i] = step * static_cast<float>((low | two_bits(block.high, i) << 4) - 32);
    }
  }
}

}  // namespace millrace
