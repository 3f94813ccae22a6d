// The CPU's backend on tiny models: right against plain double precision, and the same bits whatever ran beside, in whatever slices, on
// however many threads.
#include "cpu/backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "support/bench.h"
#include "support/kernel_sets.h"
#include "support/plain_llama.h"
#include "support/tiny_model.h"

using namespace millrace;
using test::Bench;
using test::Position;
using test::TemporaryFile;

namespace {

const std::vector<Type> every_type = {Type::f32, Type::f16, Type::bf16, Type::q8_0, Type::q4_0, Type::q4_1};

std::vector<Position> alone(const EngineOptions& options, const std::vector<int32_t>& tokens, int slice) {
  Bench bench(options);
  const int sequence = bench.add(tokens);
  while (bench.left(sequence) > 0) bench.step({{sequence, std::min(slice, bench.left(sequence))}});
  return bench.logits(sequence);
}

double largest_difference(const std::vector<Position>& logits, const std::vector<std::vector<double>>& right) {
  double largest = 0;
  for (size_t t = 0; t < right.size(); t++)
    for (size_t i = 0; i < right[t].size(); i++) largest = std::max(largest, std::fabs(logits[t][i] - right[t][i]));
  return largest;
}

void check_right(KernelSet kernels, const test::TinyShape& shape) {
  test::Random random;
  const TemporaryFile path(tiny_model(shape, random));
  const EngineOptions options{.path = path.path(), .threads = 1, .slots = 2, .kernels = kernels, .precision = Precision::float32};
  const std::vector<int32_t> tokens = random.tokens(40, shape.vocabulary);
  Bench bench(options);
  const int sequence = bench.add(tokens);
  bench.step({{sequence, 40}});
  const auto right = test::PlainLlama(*bench.parts().file, bench.parts().model.config).run(tokens);
  const double difference = largest_difference(bench.logits(sequence), right);
  CHECK(difference < 1e-4, name_of(static_cast<uint32_t>(shape.type)), ", ", shape.heads, " heads over ", shape.kv_heads, ": ", difference);
}

void check_right(KernelSet kernels) {
  if (kernels != KernelSet::reference) test::kernels_or_skip(kernels);
  for (const Type type : every_type) check_right(kernels, {.type = type});
  // Heads that share a KV head by 1, 3, 6 and 7: alone, within one call of the kernel, filling it, and over it.
  check_right(kernels, {.heads = 3, .kv_heads = 3, .tied = true});
  check_right(kernels, {.heads = 6, .kv_heads = 2});
  check_right(kernels, {.heads = 6, .kv_heads = 1});
  check_right(kernels, {.heads = 7, .kv_heads = 1, .head_dim = 32, .ffn = 112});
}

// Three sequences, long enough for two pages and three partitions of attention, in random company.
void check_same_bits(KernelSet kernels, Precision precision, KvType kv_type, const test::TinyShape& shape) {
  test::Random random;
  const TemporaryFile path(tiny_model(shape, random));
  EngineOptions options{.path = path.path(), .threads = 1, .slots = 8, .kernels = kernels, .precision = precision, .kv_type = kv_type};
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::vector<Position>> right;
  for (const int length : {530, 40, 270}) {
    prompts.push_back(random.tokens(length, shape.vocabulary));
    right.push_back(alone(options, prompts.back(), 1));
  }
  CHECK(alone(options, prompts[0], 256) == right[0], "in steps of 256");
  for (options.threads = 1; options.threads <= 3; options.threads++) {
    Bench bench(options);
    // A stranger first, so that the others find pages full of what it left.
    const int stranger = bench.add(random.tokens(600, shape.vocabulary));
    for (int i = 0; i < 3; i++) bench.step({{stranger, 200}});
    bench.end(stranger);
    std::vector<int> sequences;
    for (const auto& prompt : prompts) sequences.push_back(bench.add(prompt));
    const auto largest = [&] { return random.chance(0.5) ? 1 : random.between(1, 80); };
    for (;;) {
      std::vector<Bench::Part> parts;
      for (const int sequence : sequences)
        if (bench.left(sequence) > 0 && random.chance(0.7)) parts.push_back({sequence, std::min(largest(), bench.left(sequence))});
      if (!parts.empty()) bench.step(parts);
      if (std::all_of(sequences.begin(), sequences.end(), [&](int sequence) { return bench.left(sequence) == 0; })) break;
    }
    for (size_t i = 0; i < prompts.size(); i++)
      for (size_t t = 0; t < right[i].size(); t++)
        CHECK(std::memcmp(bench.logits(sequences[i])[t].data(), right[i][t].data(), right[i][t].size() * sizeof(float)) == 0, "sequence ", i, " position ", t,
              ", ", options.threads, " threads");
  }
}

void check_same_bits(KernelSet kernels, Precision precision, KvType kv_type = KvType::f16) {
  if (kernels != KernelSet::reference) test::kernels_or_skip(kernels);
  const test::TinyShape small{.layers = 1, .hidden = 32, .heads = 4, .kv_heads = 1, .ffn = 64, .vocabulary = 260, .type = Type::q4_1};
  check_same_bits(kernels, precision, kv_type, small);
  test::TinyShape other = small;
  other.type = test::Random().chance(0.5) ? Type::q8_0 : Type::bf16;
  other.heads = 8;  // more than one call of the kernel takes
  if (kernels != KernelSet::reference) check_same_bits(kernels, precision, kv_type, other);
}

}  // namespace

TEST("the float32 yardstick agrees with plain double precision, by the reference") { check_right(KernelSet::reference); }
TEST("the float32 yardstick agrees with plain double precision, by AVX2") { check_right(KernelSet::avx2); }
TEST("the float32 yardstick agrees with plain double precision, by AVX-512") { check_right(KernelSet::avx512); }

TEST("logits are the same bits in any company, slices and threads: reference, as stored") { check_same_bits(KernelSet::reference, Precision::stored); }
TEST("logits are the same bits in any company, slices and threads: reference, float32") { check_same_bits(KernelSet::reference, Precision::float32); }
TEST("logits are the same bits in any company, slices and threads: AVX2, as stored") { check_same_bits(KernelSet::avx2, Precision::stored); }
TEST("logits are the same bits in any company, slices and threads: AVX2, float32") { check_same_bits(KernelSet::avx2, Precision::float32); }
TEST("logits are the same bits in any company, slices and threads: AVX-512, as stored") { check_same_bits(KernelSet::avx512, Precision::stored); }
TEST("logits are the same bits in any company, slices and threads: AVX-512, float32") { check_same_bits(KernelSet::avx512, Precision::float32); }
TEST("logits are the same bits in any company, slices and threads: reference, KV in 8 bits") { check_same_bits(KernelSet::reference, Precision::stored, KvType::q8); }
TEST("logits are the same bits in any company, slices and threads: AVX2, KV in 8 bits") { check_same_bits(KernelSet::avx2, Precision::stored, KvType::q8); }
TEST("logits are the same bits in any company, slices and threads: AVX-512, KV in 8 bits") { check_same_bits(KernelSet::avx512, Precision::stored, KvType::q8); }

TEST("AVX2 and AVX-512 give the same bits") {
  test::kernels_or_skip(KernelSet::avx512);
  for (const Type type : every_type) {
    test::Random random;
    const TemporaryFile path(tiny_model({.type = type}, random));
    const std::vector<int32_t> tokens = random.tokens(300, 300);
    EngineOptions options{.path = path.path(), .threads = 1, .slots = 1, .kernels = KernelSet::avx2};
    const auto narrow = alone(options, tokens, 100);
    options.kernels = KernelSet::avx512;
    CHECK(alone(options, tokens, 100) == narrow, name_of(static_cast<uint32_t>(type)));
    options.kv_type = KvType::q8;
    const auto wide = alone(options, tokens, 100);
    CHECK(wide != narrow, name_of(static_cast<uint32_t>(type)), ", KV in 8 bits as in 16");
    options.kernels = KernelSet::avx2;
    CHECK(alone(options, tokens, 100) == wide, name_of(static_cast<uint32_t>(type)), ", KV in 8 bits");
  }
}

TEST("the fast path strays from the yardstick by no more than its 8 bits explain") {
  for (const KernelSet kernels : {KernelSet::reference, KernelSet::avx2, KernelSet::avx512}) {
    if (kernels_of(kernels, inspect_machine()) == nullptr) continue;
    for (const Type type : {Type::q8_0, Type::q4_0, Type::q4_1}) {
      test::Random random;
      const TemporaryFile path(tiny_model({.type = type}, random));
      EngineOptions options{.path = path.path(), .threads = 1, .slots = 1, .kernels = kernels};
      const std::vector<int32_t> tokens = random.tokens(60, 300);
      options.kv_type = random.chance(0.5) ? KvType::q8 : KvType::f16;
      const auto fast = alone(options, tokens, 60);
      options.precision = Precision::float32;
      const auto right = alone(options, tokens, 60);
      double error = 0, size = 0;
      for (size_t t = 0; t < right.size(); t++)
        for (size_t i = 0; i < right[t].size(); i++) {
          error += std::pow(fast[t][i] - right[t][i], 2);
          size += std::pow(right[t][i], 2);
        }
      CHECK(std::sqrt(error / size) < 0.03, name_of(static_cast<uint32_t>(type)), ": ", std::sqrt(error / size));
    }
  }
}
