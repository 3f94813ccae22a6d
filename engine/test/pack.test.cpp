// What packing makes of every type: the same values, or as near as it promises.
#include "cpu/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "support/kernel_sets.h"

using namespace millrace;
using test::HeldTensor;

namespace {

// Row `row` of a packed matrix, read back by what pack.h says of bands.
std::vector<float> unpacked(const PackedMatrix& matrix, int row) {
  std::vector<float> values(static_cast<size_t>(matrix.columns));
  const uint8_t* bytes = matrix.band(row / band_rows);
  const int lane = row % band_rows;
  for (int c = 0; c < matrix.columns; c++) {
    float& value = values[static_cast<size_t>(c)];
    const int block = c / block_values, i = c % block_values;
    if (matrix.packing == Packing::q4) {
      const BandQ4& band = reinterpret_cast<const BandQ4*>(bytes)[block];
      const uint8_t pair = band.nibbles[i % 16 / 4][4 * lane + i % 4];
      value = half_to_float(band.scale[lane]) * static_cast<float>(i < 16 ? pair & 15 : pair >> 4) + half_to_float(band.minimum[lane]);
    } else if (matrix.packing == Packing::q8) {
      const BandQ8& band = reinterpret_cast<const BandQ8*>(bytes)[block];
      value = half_to_float(band.scale[lane]) * static_cast<float>(band.quants[i / 4][4 * lane + i % 4]);
    } else if (matrix.packing == Packing::f32) {
      value = reinterpret_cast<const float*>(bytes)[c * band_rows + lane];
    } else {
      const uint16_t half = reinterpret_cast<const uint16_t*>(bytes)[c * band_rows + lane];
      value = matrix.packing == Packing::f16 ? half_to_float(half) : bfloat_to_float(half);
    }
  }
  return values;
}

// The largest difference as a part of the row's largest magnitude.
float error_of(const PackedMatrix& matrix, const HeldTensor& held) {
  float worst = 0;
  for (int row = 0; row < matrix.rows; row++) {
    const std::vector<float> exact = held.row(row), packed = unpacked(matrix, row);
    float largest = 0, error = 0;
    for (size_t c = 0; c < exact.size(); c++) {
      largest = std::max(largest, std::fabs(exact[c]));
      error = std::max(error, std::fabs(exact[c] - packed[c]));
    }
    worst = std::max(worst, error / largest);
  }
  return worst;
}

struct Expected {
  Type type;
  Packing packing;
  float error;  // of a row's largest magnitude
};

// Half a step of float16 is 2^-12 of a value; a scale and a minimum that are rounded apart lose that much of up to three times the
// row's largest magnitude each.
constexpr Expected all_expected[] = {
    {Type::f32, Packing::f32, 0},      {Type::f16, Packing::f16, 0},        {Type::bf16, Packing::bf16, 0},
    {Type::q8_0, Packing::q8, 0},      {Type::q4_0, Packing::q4, 0},        {Type::q4_1, Packing::q4, 0},
    {Type::q5_0, Packing::q8, 0},      {Type::iq4_nl, Packing::q8, 0},      {Type::mxfp4, Packing::q8, 0},
    {Type::q4_k, Packing::q4, 0x1p-9f}, {Type::iq4_xs, Packing::q8, 0x1p-11f}, {Type::q5_1, Packing::f16, 0x1p-11f},
    {Type::q2_k, Packing::f16, 0x1p-11f}, {Type::q3_k, Packing::f16, 0x1p-11f}, {Type::q5_k, Packing::f16, 0x1p-11f},
    {Type::q6_k, Packing::f16, 0x1p-11f},
};

}  // namespace

TEST("every type is packed as its values are, within what its packing may lose") {
  test::Random random;
  CHECK_EQUAL(std::size(all_expected), std::size(test::all_types));
  for (const Expected& expected : all_expected) {
    const HeldTensor held(random, expected.type, 21, 512, 0.05f);
    const PackedMatrix matrix = pack({&held.tensor}, false, false);
    const std::string name = name_of(static_cast<uint32_t>(expected.type));
    CHECK(matrix.packing == expected.packing, name, " is packing ", static_cast<int>(matrix.packing));
    const float error = error_of(matrix, held);
    CHECK(error <= expected.error, name, " loses ", error);
    CHECK(expected.error == 0 || error > 0, name, " loses nothing, so this test measures nothing");
    CHECK_EQUAL(error_of(pack({&held.tensor}, false, true), held), 0.0f);
  }
}

// A product of scales is a whole number of float16's smallest steps, so it can only be too large.
TEST("scales and values that float16 cannot hold are kept in wider types") {
  test::Random random;
  const std::pair<Type, float> large[] = {{Type::q4_k, 5e5f}, {Type::iq4_xs, 5e6f}, {Type::q6_k, 1e6f}};
  for (const auto& [type, scale] : large) {
    const HeldTensor held(random, type, 16, 256, scale);
    const PackedMatrix matrix = pack({&held.tensor}, false, false);
    CHECK(matrix.packing == Packing::f32, name_of(static_cast<uint32_t>(type)), " is packing ", static_cast<int>(matrix.packing));
    CHECK_EQUAL(error_of(matrix, held), 0.0f);
  }
  for (const float scale : {0x1p-60f, 0x1p60f}) {
    const HeldTensor held(random, Type::mxfp4, 16, 256, scale);
    const PackedMatrix matrix = pack({&held.tensor}, false, false);
    CHECK(matrix.packing == Packing::bf16);
    CHECK_EQUAL(error_of(matrix, held), 0.0f);
  }
}

TEST("types that differ are packed together as float16, or float32 where one of them needs it") {
  test::Random random;
  const HeldTensor q4_0(random, Type::q4_0, 16, 256, 0.05f), q4(random, Type::q4_k, 16, 256, 0.05f), q6(random, Type::q6_k, 16, 256, 0.05f), bf(random, Type::bf16, 16, 256, 0.05f);
  CHECK(pack({&q4.tensor, &q6.tensor}, false, false).packing == Packing::f16);
  CHECK(pack({&q4.tensor, &q4_0.tensor}, false, false).packing == Packing::q4);
  CHECK(pack({&q4.tensor, &bf.tensor}, false, false).packing == Packing::f32);
}

TEST("rows that lie apart, or are computed, are packed like rows in a run") {
  test::Random random;
  const HeldTensor held(random, Type::q8_0, 40, 64, 0.05f);
  FileTensor apart = held.tensor, derived = held.tensor;
  for (int row = 0; row < 40; row++) apart.places.push_back(held.tensor.row(39 - row));
  apart.bytes = nullptr;
  derived.type = Type::derived;
  derived.bytes = nullptr;
  derived.derive = [&](int64_t row, float* values) { read_row(held.tensor, row, values); };
  const PackedMatrix turned = pack({&apart}, false, false), computed = pack({&derived}, false, false);
  CHECK(turned.packing == Packing::q8 && computed.packing == Packing::f16);
  for (int row = 0; row < 40; row++) CHECK_EQUAL(unpacked(turned, row), held.row(39 - row));
  CHECK(error_of(computed, held) <= 0x1p-11f);
}

TEST("the log names what was packed as something else, and says what is slow") {
  test::Random random;
  PackLog log;
  const HeldTensor q4_k(random, Type::q4_k, 16, 256, 0.05f), q6_k(random, Type::q6_k, 16, 256, 0.05f), q8_0(random, Type::q8_0, 16, 256, 0.05f);
  for (const HeldTensor* held : {&q4_k, &q6_k, &q8_0}) pack({&held->tensor}, false, false, &log);
  const std::vector<std::string> lines = log.lines();
  REQUIRE(lines.size() == 2, lines.size());
  CHECK(lines[0].find("of Q4_K as 4-bit bands, rounded by at most") != std::string::npos && lines[0].find("slow") == std::string::npos, lines[0]);
  CHECK(lines[1].find("of Q6_K as F16") != std::string::npos && lines[1].find("slow") != std::string::npos, lines[1]);
}
