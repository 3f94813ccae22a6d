// Weights in four bits: a file's blocks in our order, those as bfloat16, and whole models of them beside the CPU's float32.
#include "cuda/q4.h"

#include <algorithm>
#include <cmath>

#include "cuda/vectors.h"
#include "support/bench.h"
#include "support/cuda_q4.h"
#include "support/cuda_step.h"
#include "support/tiny_model.h"

using namespace millrace;
using test::Position, test::Random;

namespace {

constexpr Type sources[] = {Type::q4_0, Type::q4_1, Type::q4_k};
// Of the norm of all logits. Keys, values and what matrices read are rounded to bfloat16, by 0.1% at the root of the mean square, in two or three layers, and in mixed
// files whole matrices are.
constexpr double error_max = 0.03;

struct Part {
  Type type;
  int rows;
  std::string blocks;
};

// Rows of two types one after another, in memory as the weights' is.
struct Packed {
  int rows, columns;
  Part parts[2];
  DeviceArray<uint8_t> values;

  DeviceMatrix matrix() const { return {.type = DeviceMatrix::Type::q4, .values = values.get(), .rows = rows, .columns = padded_columns(columns)}; }
  const Part& part_of(int row) const { return parts[row < parts[0].rows ? 0 : 1]; }
  std::vector<float> row_of_file(int row) const {
    const Part& part = part_of(row);
    const int own = row < parts[0].rows ? row : row - parts[0].rows;
    std::vector<float> values(static_cast<size_t>(columns));
    dequantize(part.type, part.blocks.data() + int64_t{own} * (columns / values_a_block(part.type) * bytes_a_block(part.type)), columns, values.data());
    return values;
  }
};

Packed any_packed(Random& random, Type type) {
  const Type other = sources[random.between(0, 2)];
  const int blocks = random.between(1, 9), columns = type == Type::q4_k || other == Type::q4_k ? 256 * blocks : 32 * blocks;
  Packed packed{.rows = 0, .columns = columns, .parts = {{type, 8 * random.between(1, 9), {}}, {other, random.between(1, 40), {}}}, .values = {}};
  for (const Part& part : packed.parts) packed.rows += part.rows;
  packed.values = DeviceArray<uint8_t>(static_cast<size_t>((packed.rows + 64) * q4_row_bytes(columns)));
  int first = 0;
  for (Part& part : packed.parts) {
    part.blocks = random_values(random, part.type, int64_t{part.rows} * columns, 0.05f);
    const auto blocks_of_file = test::upload(std::vector<uint8_t>(part.blocks.begin(), part.blocks.end()));
    pack_q4(nullptr, part.type, blocks_of_file.get(), part.rows, columns, packed.matrix(), first);
    check(cudaDeviceSynchronize(), "packing");
    first += part.rows;
  }
  return packed;
}

struct Run {
  std::vector<Position> logits;
  std::string log;
};

// Steps of as many tokens as `counts` says, over and over, until the sequence ends.
Run run_model(const EngineOptions& options, const std::vector<int32_t>& tokens, const std::vector<int>& counts) {
  test::Bench bench(options);
  const int sequence = bench.add(tokens);
  for (size_t step = 0; bench.left(sequence) > 0; step++) bench.step({{sequence, std::min(counts[step % counts.size()], bench.left(sequence))}});
  Run run{bench.logits(sequence), {}};
  for (const std::string& line : bench.parts().info.log) run.log += line + "\n";
  return run;
}

double difference(const std::vector<Position>& logits, const std::vector<Position>& right) {
  double error = 0, size = 0;
  for (size_t t = 0; t < right.size(); t++)
    for (size_t i = 0; i < right[t].size(); i++) {
      error += std::pow(logits[t][i] - right[t][i], 2);
      size += std::pow(right[t][i], 2);
    }
  // What is no number is infinitely wrong.
  return std::isfinite(error) ? std::sqrt(error / size) : HUGE_VAL;
}

// Steps that are multiplied by cuBLASLt where it is, by our kernel in each of its sizes, and by both.
const std::vector<int> all_ways = {150, 40, 1, 1, 20, 60, 9, 3};

void check_model(const test::TinyShape& shape, const std::string& counted) {
  Random random;
  const test::TemporaryFile path(tiny_model(shape, random));
  EngineOptions options{.path = path.path(), .threads = 2, .context_tokens = shape.context, .slots = 4, .kernels = KernelSet::cpu, .precision = Precision::float32, .prefix_cache = false};
  const std::vector<int32_t> tokens = random.tokens(500, shape.vocabulary);
  const Run right = run_model(options, tokens, {250});
  options.kernels = KernelSet::hopper;
  options.precision = Precision::stored;
  const auto what = test::sentence("", name_of(static_cast<uint32_t>(shape.type)), ", hidden ", shape.hidden);
  const Run mixed = run_model(options, tokens, all_ways), whole = run_model(options, tokens, {250});
  CHECK(mixed.log.find(counted) != std::string::npos, what, " is not \"", counted, "\" but ", mixed.log);
  CHECK(difference(mixed.logits, right.logits) <= error_max, what, " in all ways: off by ", difference(mixed.logits, right.logits));
  CHECK(difference(whole.logits, right.logits) <= error_max, what, " in prefill: off by ", difference(whole.logits, right.logits));
  options.deterministic = true;
  const Run alone = run_model(options, tokens, {1}), company = run_model(options, tokens, all_ways);
  CHECK(difference(alone.logits, right.logits) <= error_max, what, " deterministic: off by ", difference(alone.logits, right.logits));
  CHECK(alone.logits == company.logits, what, ": other bits in other steps");
}

// Some matrices of every type, and the bytes that they became on the device.
template <typename Use>
void each_packed(const Use& use) {
  test::need_gpu();
  Random random;
  for (const Type type : sources)
    for (int repeat = 0; repeat < 4; repeat++) {
      const Packed packed = any_packed(random, type);
      use(random, packed, test::download(packed.values));
    }
}

}  // namespace

TEST("a file's four bits are packed as they are, with scales rounded to float16 where they are products") {
  each_packed([](Random&, const Packed& packed, const std::vector<uint8_t>& bytes) {
    for (int row = 0; row < packed.rows; row++) {
      const std::vector<float> right = packed.row_of_file(row);
      const bool is_rounded = packed.part_of(row).type == Type::q4_k;
      for (int c = 0; c < packed.columns; c++) {
        const test::Q4Value value = test::q4_value(bytes, packed.columns, row, c);
        const double allowed = is_rounded ? 0x1p-11 * (std::fabs(15 * value.scale) + std::fabs(value.minimum)) + 0x1p-20 : 0;
        const double got = is_rounded ? value.exact() : static_cast<float>(value.exact()), error = std::fabs(got - right[static_cast<size_t>(c)]);
        CHECK(error <= allowed, name_of(static_cast<uint32_t>(packed.part_of(row).type)), " row ", row, " column ", c, " is ", got, ", not ", right[static_cast<size_t>(c)]);
      }
      for (int c = packed.columns; c < q4_pieces(packed.columns) * q4_piece_columns; c++) {
        const test::Q4Value behind = test::q4_value(bytes, packed.columns, row, c);
        CHECK(behind.scale == 0 && behind.minimum == 0, "row ", row, " has something behind its columns");
      }
    }
  });
}

TEST("four bits become bfloat16, any part of the rows") {
  each_packed([](Random& random, const Packed& packed, const std::vector<uint8_t>& bytes) {
    const int columns = padded_columns(packed.columns), first = 8 * random.between(0, (packed.rows - 1) / 8), count = random.between(1, packed.rows - first);
    const auto values = test::upload(std::vector<uint16_t>(static_cast<size_t>(count + 1) * static_cast<size_t>(columns), 0xffff));
    unpack_q4(nullptr, packed.matrix(), first, count, reinterpret_cast<__nv_bfloat16*>(values.get()));
    check(cudaDeviceSynchronize(), "unpacking");
    const std::vector<uint16_t> got = test::download(values);
    for (size_t i = 0; i < got.size(); i++) {
      const int row = static_cast<int>(i) / columns, column = static_cast<int>(i) % columns;
      const test::Q4Value value = row < count ? test::q4_value(bytes, packed.columns, first + row, column) : test::Q4Value{};
      const uint16_t right = row < count ? test::bfloat_of(std::fma(static_cast<float>(value.quant), value.scale, value.minimum)) : uint16_t{0xffff};
      CHECK(got[i] == right, "row ", row, " of ", count, " column ", column, " is ", test::float_of(got[i]), ", not ", test::float_of(right));
    }
  });
}

TEST("models in four bits answer as the CPU's float32 does, by either way of multiplying, and deterministic ones with the same bits in any company") {
  test::need_gpu();
  const std::string all = "1 matrix in bfloat16, 9 matrices in 4 bits";
  for (const Type type : sources) check_model({.hidden = 256, .head_dim = 64, .ffn = 512, .type = type}, all);
  check_model({.hidden = 96, .head_dim = 32, .ffn = 160, .type = Type::q4_0}, all);
}

TEST("models of mixed types keep four bits where a whole matrix has them") {
  test::need_gpu();
  check_model({.layers = 3, .hidden = 256, .head_dim = 64, .ffn = 512, .type = Type::q4_k, .down = Type::q6_k}, "7 matrices in bfloat16, 7 matrices in 4 bits");
  check_model({.hidden = 160, .head_dim = 32, .ffn = 96, .type = Type::q4_1, .down = Type::q8_0, .tied = true}, "5 matrices in bfloat16, 5 matrices in 4 bits");
}
