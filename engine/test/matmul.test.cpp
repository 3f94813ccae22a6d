// Matrix kernels: every set against the exact sum, and against one another bit for bit where they promise it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "support/kernel_sets.h"

using namespace millrace;
using test::HeldActivations;
using test::HeldTensor;

namespace {

constexpr float untouched = 12345;
const std::vector<Type> every_type = {Type::f32, Type::f16, Type::bf16, Type::q8_0, Type::q4_0, Type::q4_1};

struct Case {
  HeldTensor weight;
  HeldActivations x;
  PackedMatrix packed;

  Case(test::Random& random, Type type, int rows, int columns, int tokens)
      : weight(random, type, rows, columns, 0.3f), x(random, tokens, columns), packed(pack({&weight.tensor}, false, false)) {}
};

// The exact sum, and what float32 may lose of it: each of its terms enters one fused or two plain operations a column or block.
struct Exact {
  double sum = 0, loss = 0;
};

Exact exact(const HeldTensor& weight, const HeldActivations& x, int row, int t, bool quantized) {
  Exact result;
  double magnitude = 0;
  const std::vector<float> values = weight.row(row);
  for (int c = 0; c < x.columns; c++) {
    const double term = double{values[static_cast<size_t>(c)]} * x.seen(t, c, quantized);
    result.sum += term;
    magnitude += std::fabs(term);
    // A nibble and its minimum are summed apart, and may cancel.
    if (weight.tensor.type == Type::q4_1 || weight.tensor.type == Type::q4_0) magnitude += 2 * std::fabs(x.seen(t, c, quantized));
  }
  result.loss = 0x1p-23 * magnitude * (2 + x.columns / (quantized ? 16.0 : 2.0));
  return result;
}

std::vector<float> run(void (*kernel)(const MatmulTask&), const Case& each, int tokens, int first_band, int last_band, int stride) {
  std::vector<float> y(static_cast<size_t>(tokens) * static_cast<size_t>(stride), untouched);
  kernel({&each.packed, each.x.view(), tokens, first_band, last_band, y.data(), stride});
  return y;
}

void check_exact(const Kernels& kernels, test::Random& random) {
  for (const Type type : every_type)
    for (const int rows : {1, 15, 16, 33, 48, 75}) {
      const int columns = 32 * random.between(1, 4), tokens = random.between(1, 19), stride = rows + random.between(0, 3);
      const Case each(random, type, rows, columns, tokens);
      const std::vector<float> y = run(kernels.matmul, each, tokens, 0, each.packed.bands, stride);
      std::vector<float> sum(y.size(), 2);
      kernels.matmul_add({&each.packed, each.x.view(), tokens, 0, each.packed.bands, sum.data(), stride});
      for (int t = 0; t < tokens; t++)
        for (int row = 0; row < stride; row++) {
          const size_t at = static_cast<size_t>(t) * static_cast<size_t>(stride) + static_cast<size_t>(row);
          if (row >= rows) {
            CHECK_EQUAL(y[at], untouched);
            continue;
          }
          const Exact right = exact(each.weight, each.x, row, t, each.packed.quantized());
          CHECK(std::fabs(y[at] - right.sum) <= right.loss, name_of(static_cast<uint32_t>(type)), " ", rows, " x ", columns, " token ", t, " of ", tokens,
                " row ", row, ": ", y[at], ", not ", right.sum, " within ", right.loss);
          CHECK_EQUAL(sum[at], 2 + y[at]);
        }
    }
}

void check_gated(const Kernels& kernels, test::Random& random) {
  for (const Type type : every_type)
    for (const int outputs : {16, 40, 96}) {
      const int columns = 64, tokens = random.between(1, 19);
      const HeldTensor gate(random, type, outputs, columns, 0.3f), up(random, type, outputs, columns, 0.3f);
      const HeldActivations x(random, tokens, columns);
      const PackedMatrix packed = pack({&gate.tensor, &up.tensor}, true, false);
      std::vector<float> y(static_cast<size_t>(tokens * outputs), untouched);
      kernels.matmul_gated({&packed, x.view(), tokens, 0, packed.bands / 2, y.data(), outputs});
      for (int t = 0; t < tokens; t++)
        for (int row = 0; row < outputs; row++) {
          const Exact g = exact(gate, x, row, t, packed.quantized()), u = exact(up, x, row, t, packed.quantized());
          const double silu = g.sum / (1 + std::exp(-g.sum)), right = silu * u.sum;
          // silu is steeper than 1 by a tenth at most.
          const double loss = 1.2 * g.loss * std::fabs(u.sum) + std::fabs(silu) * u.loss + 1e-6 * std::fabs(right) + 1e-7;
          const float got = y[static_cast<size_t>(t * outputs + row)];
          CHECK(std::fabs(got - right) <= loss, name_of(static_cast<uint32_t>(type)), " row ", row, ": ", got, ", not ", right, " within ", loss);
        }
    }
}

// A token's result must not know who else is in the step, nor how many bands a thread was given.
void check_alone(const Kernels& kernels, test::Random& random) {
  for (const Type type : every_type) {
    const int rows = 75, tokens = 19;
    Case each(random, type, rows, 96, tokens);
    const std::vector<float> together = run(kernels.matmul, each, tokens, 0, each.packed.bands, rows);
    for (int count = 1; count < tokens; count++) {
      const std::vector<float> fewer = run(kernels.matmul, each, count, 0, each.packed.bands, rows);
      CHECK(std::memcmp(fewer.data(), together.data(), fewer.size() * sizeof(float)) == 0, name_of(static_cast<uint32_t>(type)), ", ", count, " tokens");
    }
    for (int t = 0; t < tokens; t++) {
      std::vector<float> y(static_cast<size_t>(rows));
      kernels.matmul({&each.packed, each.x.view(t), 1, 0, each.packed.bands, y.data(), rows});
      CHECK(std::memcmp(y.data(), &together[static_cast<size_t>(t * rows)], y.size() * sizeof(float)) == 0, name_of(static_cast<uint32_t>(type)), ", token ", t);
    }
    const std::vector<float> middle = run(kernels.matmul, each, tokens, 1, 3, rows);
    for (int t = 0; t < tokens; t++)
      for (int row = 0; row < rows; row++) {
        const size_t at = static_cast<size_t>(t * rows + row);
        CHECK_EQUAL(middle[at], row / band_rows == 1 || row / band_rows == 2 ? together[at] : untouched);
      }
  }
}

}  // namespace

TEST("the reference multiplies within what float32 loses of the exact sum") {
  test::Random random;
  check_exact(reference_kernels, random);
}
TEST("AVX2 multiplies within what float32 loses of the exact sum") {
  test::Random random;
  check_exact(test::kernels_or_skip(KernelSet::avx2), random);
}
TEST("AVX-512 multiplies within what float32 loses of the exact sum") {
  test::Random random;
  check_exact(test::kernels_or_skip(KernelSet::avx512), random);
}

TEST("the reference gates within what float32 loses") {
  test::Random random;
  check_gated(reference_kernels, random);
}
TEST("AVX2 gates within what float32 loses") {
  test::Random random;
  check_gated(test::kernels_or_skip(KernelSet::avx2), random);
}
TEST("AVX-512 gates within what float32 loses") {
  test::Random random;
  check_gated(test::kernels_or_skip(KernelSet::avx512), random);
}

TEST("a token's bits from the reference do not depend on the batch or the bands") {
  test::Random random;
  check_alone(reference_kernels, random);
}
TEST("a token's bits from AVX2 do not depend on the batch or the bands") {
  test::Random random;
  check_alone(test::kernels_or_skip(KernelSet::avx2), random);
}
TEST("a token's bits from AVX-512 do not depend on the batch or the bands") {
  test::Random random;
  check_alone(test::kernels_or_skip(KernelSet::avx512), random);
}

TEST("AVX2 and AVX-512 multiply and gate to the same bits") {
  test::Random random;
  const Kernels &narrow = test::kernels_or_skip(KernelSet::avx2), &wide = test::kernels_or_skip(KernelSet::avx512);
  for (const Type type : every_type)
    for (int tokens = 1; tokens <= 19; tokens++) {
      const Case each(random, type, 64, 96, tokens);
      CHECK(run(narrow.matmul, each, tokens, 0, 4, 64) == run(wide.matmul, each, tokens, 0, 4, 64), name_of(static_cast<uint32_t>(type)), ", ", tokens, " tokens");
      CHECK(run(narrow.matmul_gated, each, tokens, 0, 2, 32) == run(wide.matmul_gated, each, tokens, 0, 2, 32), name_of(static_cast<uint32_t>(type)),
            ", gated, ", tokens, " tokens");
    }
}

TEST("weights and activations at the ends of their range do not overflow") {
  for (const KernelSet set : {KernelSet::reference, KernelSet::avx2, KernelSet::avx512}) {
    const Kernels* kernels = kernels_of(set, inspect_machine());
    if (kernels == nullptr) continue;
    for (const Type type : {Type::q8_0, Type::q4_0, Type::q4_1})
      for (const int sign : {-1, 1}) {
        test::Random random;
        Case each(random, type, 16, 64, 1);
        auto* stored = const_cast<uint8_t*>(each.weight.tensor.bytes);
        const int head = type == Type::q4_1 ? 4 : 2, block = bytes_a_block(type);
        for (int64_t at = 0; at < each.weight.tensor.row_bytes() * 16; at++)
          if (at % block >= head) stored[at] = type == Type::q8_0 ? (sign < 0 ? 0x80 : 0x7f) : 0xff;
        each.packed = pack({&each.weight.tensor}, false, false);
        for (float& value : each.x.values) value = static_cast<float>(sign) * 3;
        reference_kernels.quantize(each.x.values.data(), 64, {each.x.quants.data(), each.x.scales.data(), each.x.sums.data(), each.x.totals.data()});
        const std::vector<float> y = run(kernels->matmul, each, 1, 0, 1, 16);
        for (int row = 0; row < 16; row++) {
          const Exact right = exact(each.weight, each.x, row, 0, true);
          CHECK(std::fabs(y[static_cast<size_t>(row)] - right.sum) <= right.loss, kernels->name, " ", name_of(static_cast<uint32_t>(type)), ": ",
                y[static_cast<size_t>(row)], ", not ", right.sum);
        }
      }
  }
}

TEST("matrices of which one needs it are packed together as float32, and float32 is asked for by the yardstick") {
  test::Random random;
  const HeldTensor a(random, Type::q4_1, 16, 32, 1), b(random, Type::bf16, 20, 32, 1);
  CHECK(!can_pack_together({&a.tensor, &b.tensor}));
  const PackedMatrix mixed = pack({&a.tensor, &b.tensor}, false, false), alone = pack({&a.tensor}, false, true);
  CHECK(mixed.packing == Packing::f32 && alone.packing == Packing::f32);
  CHECK_EQUAL(mixed.rows, 36);
  CHECK_EQUAL(mixed.bands, 3);
  const auto at = [](const PackedMatrix& matrix, int row, int column) {
    return reinterpret_cast<const float*>(matrix.band(row / band_rows))[column * band_rows + row % band_rows];
  };
  for (int c = 0; c < 32; c++) {
    CHECK_EQUAL(at(mixed, 3, c), a.row(3)[static_cast<size_t>(c)]);
    CHECK_EQUAL(at(mixed, 16 + 19, c), b.row(19)[static_cast<size_t>(c)]);
    CHECK_EQUAL(at(mixed, 36, c), 0.0f);
  }
}
