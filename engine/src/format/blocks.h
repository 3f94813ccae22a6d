// The quantized blocks of GGUF as they lie in a file, little-endian. Halves are float16. All multiplications are float32, in the order
// that the formulas give, which is the order of the `gguf` Python package too.
#pragma once

#include <cstdint>

namespace millrace {

constexpr int block_values = 32;    // values of a simple block
constexpr int k_block_values = 256;  // values of a K-quant's block, and of IQ4_XS

struct BlockQ4_0 {      // value = scale * (nibble - 8)
  uint16_t scale;       // half
  uint8_t nibbles[16];  // value i in the low half of byte i, value i + 16 in its high half
};

struct BlockQ4_1 {      // value = scale * nibble + minimum
  uint16_t scale;       // half
  uint16_t minimum;     // half
  uint8_t nibbles[16];  // as in BlockQ4_0
};

struct BlockQ5_0 {      // value = scale * (quant - 16)
  uint16_t scale;       // half
  uint8_t high[4];      // the quant's fifth bit: of value i in bit i
  uint8_t nibbles[16];  // its lower four, as in BlockQ4_0
};

struct BlockQ5_1 {      // value = scale * quant + minimum
  uint16_t scale;       // half
  uint16_t minimum;     // half
  uint8_t high[4];      // as in BlockQ5_0
  uint8_t nibbles[16];
};

struct BlockQ8_0 {  // value = scale * quant
  uint16_t scale;   // half
  int8_t quants[32];
};

struct BlockIQ4_NL {    // value = scale * iq4_values[nibble]
  uint16_t scale;       // half
  uint8_t nibbles[16];  // as in BlockQ4_0
};

struct BlockMXFP4 {     // value = 2^(exponent - 128) * mxfp4_values[nibble]
  uint8_t exponent;
  uint8_t nibbles[16];  // as in BlockQ4_0
};

// K-quants: 256 values in sub-blocks whose scales are quantized themselves. Quants are laid out so that byte i of a run of 32 bytes
// holds values i, i + 32, i + 64, ... in its bits from the lowest up.
struct BlockQ2_K {      // value = (scale * low) * quant - (minimum * high), of scales[sub-block of 16]
  uint8_t scales[16];   // low and high halves
  uint8_t quants[64];   // two bits each, 128 values to 32 bytes
  uint16_t scale, minimum;
};

struct BlockQ3_K {      // value = (scale * (s - 32)) * (quant - 4), the quant's third bit being in `high`
  uint8_t high[32];     // bit i of byte j: value 32 i + j
  uint8_t quants[64];   // as in BlockQ2_K
  uint8_t scales[12];   // 16 scales s of six bits: the lower four in bytes 0 to 7, the upper two in 8 to 11
  uint16_t scale;
};

struct BlockQ4_K {      // value = (scale * s) * quant - (minimum * m), for each sub-block of 32
  uint16_t scale, minimum;
  uint8_t scales[12];   // 8 pairs (s, m) of six bits each; sub_scale() unpacks them
  uint8_t quants[128];  // four bits each, 64 values to 32 bytes
};

struct BlockQ5_K {  // as BlockQ4_K
  uint16_t scale, minimum;
  uint8_t scales[12];
  uint8_t high[32];     // the quant's fifth bit: bit i of byte j is of value 32 i + j
  uint8_t quants[128];
};

struct BlockQ6_K {      // value = (scale * scales[sub-block of 16]) * (quant - 32)
  uint8_t low[128];     // the quant's lower four bits, 128 values to 64 bytes: value i in byte i, value i + 64 in its high half
  uint8_t high[64];     // its upper two, as in BlockQ2_K
  int8_t scales[16];
  uint16_t scale;
};

struct BlockIQ4_XS {       // value = (scale * (s - 32)) * iq4_values[nibble], for each sub-block of 32
  uint16_t scale;
  uint16_t scales_high;    // the upper two bits of s, of sub-block i in bits 2i and 2i + 1
  uint8_t scales_low[4];   // its lower four: two sub-blocks a byte
  uint8_t nibbles[8][16];  // [sub-block], as in BlockQ4_0
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24);
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockIQ4_NL) == 18 && sizeof(BlockMXFP4) == 17 && sizeof(BlockQ2_K) == 84);
static_assert(sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);
static_assert(sizeof(BlockIQ4_XS) == 136);

extern const int8_t iq4_values[16];
extern const int8_t mxfp4_values[16];  // doubled, so that they are whole

// The pair (s, m) of a sub-block of Q4_K or Q5_K.
struct SubScale {
  uint8_t scale, minimum;
};
SubScale sub_scale(const uint8_t (&scales)[12], int sub_block);
// s - 32 of a sub-block of IQ4_XS.
int sub_scale(const BlockIQ4_XS& block, int sub_block);
// 2^(exponent - 128).
float mxfp4_scale(uint8_t exponent);

// The values of one block.
void dequantize_block(const BlockQ4_0& block, float* values);
void dequantize_block(const BlockQ4_1& block, float* values);
void dequantize_block(const BlockQ5_0& block, float* values);
void dequantize_block(const BlockQ5_1& block, float* values);
void dequantize_block(const BlockQ8_0& block, float* values);
void dequantize_block(const BlockQ2_K& block, float* values);
void dequantize_block(const BlockQ3_K& block, float* values);
void dequantize_block(const BlockQ4_K& block, float* values);
void dequantize_block(const BlockQ5_K& block, float* values);
void dequantize_block(const BlockQ6_K& block, float* values);
void dequantize_block(const BlockIQ4_NL& block, float* values);
void dequantize_block(const BlockIQ4_XS& block, float* values);
void dequantize_block(const BlockMXFP4& block, float* values);

}  // namespace millrace
