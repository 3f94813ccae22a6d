#include "types.h"

#include <bit>
#include <cstring>
#include <iterator>

namespace millrace {
namespace {

// What is to be known of a type: the values and bytes of a block, and how blocks become values.
struct Traits {
  int values, bytes;
  void (*dequantize)(const void* stored, int64_t blocks, float* values);
};

template <typename Block, int values>
Traits of_blocks() {
  return {values, sizeof(Block), [](const void* stored, int64_t blocks, float* out) {
            for (int64_t b = 0; b < blocks; b++) dequantize_block(static_cast<const Block*>(stored)[b], out + b * values);
          }};
}

void copy_floats(const void* stored, int64_t count, float* values) { std::memcpy(values, stored, static_cast<size_t>(count) * sizeof(float)); }

template <float (*convert)(uint16_t)>
void convert_all(const void* stored, int64_t count, float* values) {
  for (int64_t i = 0; i < count; i++) values[i] = convert(static_cast<const uint16_t*>(stored)[i]);
}

Traits traits_of(Type type) {
  switch (type) {
    case Type::f32:
      return {1, 4, copy_floats};
    case Type::f16:
      return {1, 2, convert_all<half_to_float>};
    case Type::bf16:
      return {1, 2, convert_all<bfloat_to_float>};
    case Type::q4_0:
      return of_blocks<BlockQ4_0, block_values>();
    case Type::q4_1:
      return of_blocks<BlockQ4_1, block_values>();
    case Type::q5_0:
      return of_blocks<BlockQ5_0, block_values>();
    case Type::q5_1:
      return of_blocks<BlockQ5_1, block_values>();
    case Type::q8_0:
      return of_blocks<BlockQ8_0, block_values>();
    case Type::q2_k:
      return of_blocks<BlockQ2_K, k_block_values>();
    case Type::q3_k:
      return of_blocks<BlockQ3_K, k_block_values>();
    case Type::q4_k:
      return of_blocks<BlockQ4_K, k_block_values>();
    case Type::q5_k:
      return of_blocks<BlockQ5_K, k_block_values>();
    case Type::q6_k:
      return of_blocks<BlockQ6_K, k_block_values>();
    case Type::iq4_nl:
      return of_blocks<BlockIQ4_NL, block_values>();
    case Type::iq4_xs:
      return of_blocks<BlockIQ4_XS, k_block_values>();
    case Type::mxfp4:
      return of_blocks<BlockMXFP4, block_values>();
    case Type::derived:
      break;
  }
  return {1, 0, nullptr};
}

}  // namespace

bool is_known(uint32_t type) { return traits_of(static_cast<Type>(type)).dequantize != nullptr; }

std::string name_of(uint32_t type) {
  static const char* const names[] = {"F32",  "F16",     "Q4_0",   "Q4_1",    "4",     "5",      "Q5_0",  "Q5_1",  "Q8_0",   "Q8_1", "Q2_K",
                                      "Q3_K", "Q4_K",    "Q5_K",   "Q6_K",    "Q8_K",  "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S",
                                      "IQ2_S", "IQ4_XS", "I8",     "I16",     "I32",   "I64",    "F64",   "IQ1_M", "BF16",   "31",   "32",
                                      "33",   "TQ1_0",   "TQ2_0",  "36",      "37",    "38",     "MXFP4", "NVFP4"};
  if (static_cast<Type>(type) == Type::derived) return "derived";
  return type < std::size(names) ? names[type] : "number " + std::to_string(type);
}

int values_a_block(Type type) { return traits_of(type).values; }

int bytes_a_block(Type type) { return traits_of(type).bytes; }

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
  const Traits traits = traits_of(type);
  traits.dequantize(stored, count / traits.values, values);
}

}  // namespace millrace
