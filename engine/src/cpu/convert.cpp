#include "convert.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace millrace {
namespace {

// Rounds to float16 and keeps count of what that costs.
class Rounding {
 public:
  // A factor of quants that reach up to `reach`.
  uint16_t scale(float value, float reach) {
    span_ = std::max(span_, std::fabs(value) * reach);
    return round(value, reach);
  }
  uint16_t minimum(float value) { return round(value, 1); }
  void end_block() {
    error_ = std::max(error_, block_);
    block_ = 0;
  }
  float relative() const {
    if (!(error_ < std::numeric_limits<float>::infinity())) return std::numeric_limits<float>::infinity();
    return error_ == 0 ? 0 : error_ / span_;
  }

 private:
  uint16_t round(float value, float reach) {
    const uint16_t half = float_to_half(value);
    const float lost = std::fabs(half_to_float(half) - value) * reach;
    // What is no number counts as an infinite loss.
    block_ += lost >= 0 ? lost : std::numeric_limits<float>::infinity();
    return half;
  }

  float span_ = 0, error_ = 0, block_ = 0;
};

constexpr float q4_reach = 15, q8_reach = 127;

void convert(const BlockQ4_1& block, Rounding&, BlockQ4_1* out) { *out = block; }

void convert(const BlockQ4_0& block, Rounding& rounding, BlockQ4_1* out) {
  out->scale = block.scale;
  out->minimum = rounding.minimum(-8 * half_to_float(block.scale));  // exact where it is finite: only the exponent changes
  std::memcpy(out->nibbles, block.nibbles, sizeof(out->nibbles));
}

void convert(const BlockQ4_K& block, Rounding& rounding, BlockQ4_1* out) {
  const float scale = half_to_float(block.scale), minimum = half_to_float(block.minimum);
  for (int sub = 0; sub < 8; sub++) {
    const SubScale own = sub_scale(block.scales, sub);
    out[sub].scale = rounding.scale(scale * static_cast<float>(own.scale), q4_reach);
    out[sub].minimum = rounding.minimum(-(minimum * static_cast<float>(own.minimum)));
    rounding.end_block();
    // Two sub-blocks share their 32 bytes.
    const uint8_t* quants = block.quants + sub / 2 * 32;
    const int shift = sub % 2 * 4;
    for (int i = 0; i < 16; i++) out[sub].nibbles[i] = static_cast<uint8_t>(((quants[i] >> shift) & 15) | ((quants[i + 16] >> shift) & 15) << 4);
  }
}

void convert(const BlockQ8_0& block, Rounding&, BlockQ8_0* out) { *out = block; }

void convert(const BlockQ5_0& block, Rounding&, BlockQ8_0* out) {
  out->scale = block.scale;
  for (int i = 0; i < block_values; i++) {
    const int low = i < 16 ? block.nibbles[i] & 15 : block.nibbles[i - 16] >> 4, high = (block.high[i / 8] >> (i % 8)) & 1;
    out->quants[i] = static_cast<int8_t>((low | high << 4) - 16);
  }
}

void look_up(const int8_t (&table)[16], const uint8_t (&nibbles)[16], int8_t* quants) {
  for (int i = 0; i < 16; i++) {
    quants[i] = table[nibbles[i] & 15];
    quants[i + 16] = table[nibbles[i] >> 4];
  }
}

void convert(const BlockIQ4_NL& block, Rounding&, BlockQ8_0* out) {
  out->scale = block.scale;
  look_up(iq4_values, block.nibbles, out->quants);
}

void convert(const BlockIQ4_XS& block, Rounding& rounding, BlockQ8_0* out) {
  for (int sub = 0; sub < 8; sub++) {
    out[sub].scale = rounding.scale(half_to_float(block.scale) * static_cast<float>(sub_scale(block, sub)), q8_reach);
    rounding.end_block();
    look_up(iq4_values, block.nibbles[sub], out[sub].quants);
  }
}

// Scales are powers of two, and exact from 2^-24 to 2^15.
void convert(const BlockMXFP4& block, Rounding& rounding, BlockQ8_0* out) {
  look_up(mxfp4_values, block.nibbles, out->quants);
  const bool zero = std::all_of(out->quants, out->quants + block_values, [](int8_t quant) { return quant == 0; });
  out->scale = zero ? 0 : rounding.scale(mxfp4_scale(block.exponent), 12);
  rounding.end_block();
}

template <typename Block, typename Out>
float convert_row(const uint8_t* stored, int columns, int values, Out* out) {
  Rounding rounding;
  for (int b = 0; b < columns / values; b++) {
    convert(reinterpret_cast<const Block*>(stored)[b], rounding, out + b * (values / block_values));
    rounding.end_block();
  }
  return rounding.relative();
}

}  // namespace

bool converts_to_q4(Type type) { return type == Type::q4_0 || type == Type::q4_1 || type == Type::q4_k; }

bool converts_to_q8(Type type) {
  return type == Type::q8_0 || type == Type::q5_0 || type == Type::iq4_nl || type == Type::iq4_xs || type == Type::mxfp4;
}

float convert_to_q4(Type type, const uint8_t* stored, int columns, BlockQ4_1* blocks) {
  if (type == Type::q4_0) return convert_row<BlockQ4_0>(stored, columns, block_values, blocks);
  if (type == Type::q4_1) return convert_row<BlockQ4_1>(stored, columns, block_values, blocks);
  return convert_row<BlockQ4_K>(stored, columns, k_block_values, blocks);
}

float convert_to_q8(Type type, const uint8_t* stored, int columns, BlockQ8_0* blocks) {
  if (type == Type::q8_0) return convert_row<BlockQ8_0>(stored, columns, block_values, blocks);
  if (type == Type::q5_0) return convert_row<BlockQ5_0>(stored, columns, block_values, blocks);
  if (type == Type::iq4_nl) return convert_row<BlockIQ4_NL>(stored, columns, block_values, blocks);
  if (type == Type::mxfp4) return convert_row<BlockMXFP4>(stored, columns, block_values, blocks);
  return convert_row<BlockIQ4_XS>(stored, columns, k_block_values, blocks);
}

}  // namespace millrace
