#include "types.h"

#include <bit>
#include <cstring>

namespace millrace {

bool is_known(uint32_t type) {
  switch (static_cast<Type>(type)) {
    case Type::f32:
    case Type::f16:
    case Type::bf16:
    case Type::q4_0:
    case Type::q4_1:
    case Type::q8_0:
      return true;
    case Type::derived:
      break;
  }
  return false;
}

std::string name_of(uint32_t type) {
  static const char* const names[] = {"F32",  "F16",  "Q4_0", "Q4_1", "4",       "5",      "Q5_0",  "Q5_1",  "Q8_0",   "Q8_1",   "Q2_K",
                                      "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K",    "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S",
                                      "IQ2_S", "IQ4_XS", "I8", "I16", "I32",     "I64",    "F64",   "IQ1_M", "BF16"};
  return type < std::size(names) ? names[type] : "number " + std::to_string(type);
}

int values_a_block(Type type) {
  return type == Type::q4_0 || type == Type::q4_1 || type == Type::q8_0 ? block_values : 1;
}

int bytes_a_block(Type type) {
  switch (type) {
    case Type::f32:
      return 4;
    case Type::f16:
    case Type::bf16:
      return 2;
    case Type::q4_0:
      return sizeof(BlockQ4_0);
    case Type::q4_1:
      return sizeof(BlockQ4_1);
    case Type::q8_0:
      return sizeof(BlockQ8_0);
    case Type::derived:
      break;
  }
  return 0;
}

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1f, mantissa = half & 0x3ff;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00);  // not a number
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to infinity
  if (magnitude < 0x38800000u) {  // subnormal: let the float adder round at the right bit
    const float rounded = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(rounded) - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfff + odd) >> 13));
}

float bfloat_to_float(uint16_t bfloat) { return std::bit_cast<float>(static_cast<uint32_t>(bfloat) << 16); }

void dequantize(Type type, const void* stored, int64_t count, float* values) {
  const int64_t blocks = count / values_a_block(type);
  switch (type) {
    case Type::f32:
      std::memcpy(values, stored, count * sizeof(float));
      return;
    case Type::f16:
      for (int64_t i = 0; i < count; i++) values[i] = half_to_float(static_cast<const uint16_t*>(stored)[i]);
      return;
    case Type::bf16:
      for (int64_t i = 0; i < count; i++) values[i] = bfloat_to_float(static_cast<const uint16_t*>(stored)[i]);
      return;
    case Type::q4_0:
      for (int64_t b = 0; b < blocks; b++, values += block_values) {
        const BlockQ4_0& block = static_cast<const BlockQ4_0*>(stored)[b];
        const float scale = half_to_float(block.scale);
        for (int i = 0; i < 16; i++) {
          values[i] = scale * static_cast<float>((block.nibbles[i] & 15) - 8);
          values[i + 16] = scale * static_cast<float>((block.nibbles[i] >> 4) - 8);
        }
      }
      return;
    case Type::q4_1:
      for (int64_t b = 0; b < blocks; b++, values += block_values) {
        const BlockQ4_1& block = static_cast<const BlockQ4_1*>(stored)[b];
        const float scale = half_to_float(block.scale), minimum = half_to_float(block.minimum);
        for (int i = 0; i < 16; i++) {
          values[i] = scale * static_cast<float>(block.nibbles[i] & 15) + minimum;
          values[i + 16] = scale * static_cast<float>(block.nibbles[i] >> 4) + minimum;
        }
      }
      return;
    case Type::q8_0:
      for (int64_t b = 0; b < blocks; b++, values += block_values) {
        const BlockQ8_0& block = static_cast<const BlockQ8_0*>(stored)[b];
        const float scale = half_to_float(block.scale);
        for (int i = 0; i < block_values; i++) values[i] = scale * static_cast<float>(block.quants[i]);
      }
      return;
    case Type::derived:
      break;
  }
}

}  // namespace millrace
