// The tensor types that GGUF files hold and we read, with their blocks as they lie in the file. All little-endian.
#pragma once

#include <cstdint>
#include <string>

namespace millrace {

// The numbers are GGUF's, except `derived`: rows that are computed from what another format stores.
enum class Type : uint32_t { f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q8_0 = 8, bf16 = 30, derived = 0x10000 };

constexpr int block_values = 32;  // values of one quantized block

struct BlockQ4_0 {      // value = scale * (nibble - 8)
  uint16_t scale;       // float16
  uint8_t nibbles[16];  // value i in the low half of byte i, value i + 16 in its high half
};

struct BlockQ4_1 {      // value = scale * nibble + minimum
  uint16_t scale;       // float16
  uint16_t minimum;     // float16
  uint8_t nibbles[16];  // as in BlockQ4_0
};

struct BlockQ8_0 {  // value = scale * quant
  uint16_t scale;   // float16
  int8_t quants[32];
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ8_0) == 34);

// Whether we read this type number, and a name for a person where we do not.
bool is_known(uint32_t type);
std::string name_of(uint32_t type);

// Values of one block and its bytes in the file.
int values_a_block(Type type);
int bytes_a_block(Type type);

float half_to_float(uint16_t half);
uint16_t float_to_half(float value);  // rounds to nearest even
float bfloat_to_float(uint16_t bfloat);

// Writes `count` float32 values from `count` stored ones; count is a multiple of the block.
void dequantize(Type type, const void* stored, int64_t count, float* values);

}  // namespace millrace
