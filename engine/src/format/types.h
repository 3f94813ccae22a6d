// The types of numbers that tensors are stored in. All little-endian.
#pragma once

#include <bit>
#include <cstdint>
#include <string>

#include "blocks.h"

namespace millrace {

// The numbers are GGUF's, except `derived`: rows that are computed from what another format stores.
enum class Type : uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  iq4_nl = 20,
  iq4_xs = 23,
  bf16 = 30,
  mxfp4 = 39,
  derived = 0x10000,
};

// Whether GGUF files may have this type number, and its name for a person whether they may or not.
bool is_known(uint32_t type);
std::string name_of(uint32_t type);

// Values of one block and its bytes in the file.
int values_a_block(Type type);
int bytes_a_block(Type type);

float half_to_float(uint16_t half);
uint16_t float_to_half(float value);  // rounds to nearest even
float bfloat_to_float(uint16_t bfloat);
// Rounds to nearest even.
inline uint16_t float_to_bfloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const bool is_number = (bits & 0x7fffffff) <= 0x7f800000;
  return static_cast<uint16_t>(is_number ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : 0x7fff);
}

// Writes `count` float32 values from `count` stored ones; count is a multiple of the block.
// Not for `derived`.
void dequantize(Type type, const void* stored, int64_t count, float* values);

}  // namespace millrace
