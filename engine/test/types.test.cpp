// Stored number types: conversions against a bit-level definition, blocks against their formulas.
#include "format/types.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "support/random.h"
#include "support/test.h"
#include "support/tiny_model.h"

using namespace millrace;

namespace {

// IEEE 754 binary16 by its definition.
double value_of_half(uint16_t half) {
  const int exponent = (half >> 10) & 31, mantissa = half & 1023;
  const double sign = half & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return exponent == 0 ? sign * std::ldexp(mantissa, -24) : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

bool same(float a, double b) { return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b)); }

}  // namespace

TEST("every half is read as its definition says, and written back as it was") {
  for (uint32_t half = 0; half < 65536; half++) {
    const float value = half_to_float(static_cast<uint16_t>(half));
    CHECK(same(value, value_of_half(static_cast<uint16_t>(half))), "half ", half, " is ", value);
    if (!std::isnan(value)) CHECK_EQUAL(uint32_t{float_to_half(value)}, half);
  }
}

// The nearest half, of two equally near ones the even: tried at every midpoint between neighbours and on both sides of it.
TEST("a float is rounded to the nearest half, ties to even") {
  for (uint32_t half = 0; half < 0x7c00; half++) {
    const float low = half_to_float(static_cast<uint16_t>(half));
    const double above = half == 0x7bff ? 65536 : value_of_half(static_cast<uint16_t>(half + 1));
    const float middle = static_cast<float>((low + above) / 2);
    const uint32_t even = half % 2 == 0 ? half : half + 1;
    CHECK_EQUAL(uint32_t{float_to_half(middle)}, even);
    CHECK_EQUAL(uint32_t{float_to_half(std::nextafter(middle, 0.0f))}, half);
    CHECK_EQUAL(uint32_t{float_to_half(std::nextafter(middle, INFINITY))}, half + 1);
    CHECK_EQUAL(uint32_t{float_to_half(-middle)}, even | 0x8000);
  }
  CHECK_EQUAL(uint32_t{float_to_half(1e30f)}, 0x7c00u);
  CHECK_EQUAL(uint32_t{float_to_half(-INFINITY)}, 0xfc00u);
  CHECK(std::isnan(half_to_float(float_to_half(NAN))));
}

TEST("every bfloat is the upper half of a float") {
  for (uint32_t bfloat = 0; bfloat < 65536; bfloat++) {
    const float value = bfloat_to_float(static_cast<uint16_t>(bfloat));
    CHECK_EQUAL(std::bit_cast<uint32_t>(value), bfloat << 16);
  }
}

// As above, for the bfloat: the midpoint of two neighbours is the float whose lower half is 0x8000.
TEST("a float is rounded to the nearest bfloat, ties to even") {
  for (uint32_t bfloat = 0; bfloat < 0x7f80; bfloat++) {
    const auto rounded = [&](uint32_t below) { return uint32_t{float_to_bfloat(std::bit_cast<float>((bfloat << 16) + below))}; };
    CHECK_EQUAL(rounded(0), bfloat);
    CHECK_EQUAL(rounded(0x7fff), bfloat);
    CHECK_EQUAL(rounded(0x8000), bfloat + bfloat % 2);
    CHECK_EQUAL(rounded(0x8001), bfloat + 1);
    CHECK_EQUAL(rounded(0x80008000), 0x8000 | (bfloat + bfloat % 2));
  }
  CHECK_EQUAL(uint32_t{float_to_bfloat(INFINITY)}, 0x7f80u);
  CHECK(std::isnan(bfloat_to_float(float_to_bfloat(NAN))));
}

TEST("quantized blocks are dequantized by their formulas") {
  test::Random random;
  for (int round = 0; round < 50; round++) {
    float values[32];
    const std::string q4_0 = test::random_values(random, Type::q4_0, 32, 1), q4_1 = test::random_values(random, Type::q4_1, 32, 1),
                      q8_0 = test::random_values(random, Type::q8_0, 32, 1);
    BlockQ4_0 a;
    BlockQ4_1 b;
    BlockQ8_0 c;
    std::memcpy(&a, q4_0.data(), sizeof(a));
    std::memcpy(&b, q4_1.data(), sizeof(b));
    std::memcpy(&c, q8_0.data(), sizeof(c));
    const auto nibble = [](const uint8_t* nibbles, int i) { return i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4; };
    dequantize(Type::q4_0, &a, 32, values);
    for (int i = 0; i < 32; i++) CHECK_EQUAL(values[i], half_to_float(a.scale) * static_cast<float>(nibble(a.nibbles, i) - 8));
    dequantize(Type::q4_1, &b, 32, values);
    for (int i = 0; i < 32; i++)
      CHECK_EQUAL(values[i], half_to_float(b.scale) * static_cast<float>(nibble(b.nibbles, i)) + half_to_float(b.minimum));
    dequantize(Type::q8_0, &c, 32, values);
    for (int i = 0; i < 32; i++) CHECK_EQUAL(values[i], half_to_float(c.scale) * static_cast<float>(c.quants[i]));
  }
}

TEST("plain types are dequantized value by value") {
  const float floats[] = {1.5f, -0.0f, 3e-40f};
  const uint16_t halves[] = {0x3e00, 0x8000, 0x0001};
  const uint16_t bfloats[] = {0x3fc0, 0x8000, 0x0001};
  float values[3];
  dequantize(Type::f32, floats, 3, values);
  CHECK(std::memcmp(values, floats, sizeof(values)) == 0);
  dequantize(Type::f16, halves, 3, values);
  for (int i = 0; i < 3; i++) CHECK_EQUAL(values[i], half_to_float(halves[i]));
  dequantize(Type::bf16, bfloats, 3, values);
  for (int i = 0; i < 3; i++) CHECK_EQUAL(values[i], bfloat_to_float(bfloats[i]));
}

TEST("types we do not read have a name for a person") {
  CHECK(is_known(2) && is_known(12) && !is_known(16) && !is_known(4000000000u));
  CHECK(!is_known(static_cast<uint32_t>(Type::derived)), "no file may ask for what only a reader computes");
  CHECK_EQUAL(name_of(39), std::string("MXFP4"));
  CHECK_EQUAL(name_of(12), std::string("Q4_K"));
  CHECK_EQUAL(name_of(14), std::string("Q6_K"));
  CHECK_EQUAL(name_of(30), std::string("BF16"));
  CHECK_EQUAL(name_of(4000000000u), std::string("number 4000000000"));
}
