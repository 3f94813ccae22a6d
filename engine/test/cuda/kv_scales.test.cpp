// The scales of keys and values in E4M3 against bounds in double precision, for weights of every stored type; and keys and values of inputs that reach
// for these bounds.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "cuda/vectors.h"
#include "support/cuda_q4.h"
#include "support/cuda_step.h"
#include "support/cuda_values.h"
#include "support/random.h"
#include "support/test.h"

using namespace millrace;
using test::normals, test::Random;

namespace {

using MatrixType = DeviceMatrix::Type;
using Vector = std::vector<double>;

constexpr double e4m3_max = 448, input_rounding = 1.0 / 16;

double length_of(const Vector& values) {
  double squares = 0;
  for (const double value : values) squares += value * value;
  return std::sqrt(squares);
}

// A matrix on the device, and what it is.
struct Weights {
  int rows, columns;
  std::vector<float> values;  // [rows][columns]
  DeviceArray<uint8_t> bytes;
  DeviceArray<float> scales;
  DeviceMatrix matrix;

  Weights(Random& random, MatrixType type, int rows, int columns) : rows(rows), columns(columns), values(static_cast<size_t>(rows * columns)) {
    matrix = {.type = type, .rows = rows, .columns = padded_columns(columns)};
    const float size = std::ldexp(1.0f, random.between(-8, 4)) / std::sqrt(static_cast<float>(columns));
    if (type == MatrixType::bf16) fill_bfloats(random, size);
    if (type == MatrixType::fp8) fill_e4m3(random, size / 128);
    if (type == MatrixType::q4) fill_q4(random);
    matrix.values = bytes.get();
    matrix.scales = scales.get();
  }

 private:
  float& at(int row, int column) { return values[static_cast<size_t>(row * columns + column)]; }
  size_t place(int row, int column) const { return static_cast<size_t>(row * matrix.columns + column); }

  void fill_bfloats(Random& random, float size) {
    std::vector<uint8_t> stored(place(rows, 0) * 2);
    for (int row = 0; row < rows; row++)
      for (int c = 0; c < columns; c++) {
        const uint16_t word = test::bfloat_of(static_cast<float>(random.normal()) * size);
        std::memcpy(&stored[place(row, c) * 2], &word, sizeof word);
        at(row, c) = test::float_of(word);
      }
    bytes = test::upload(stored);
  }
  void fill_e4m3(Random& random, float size) {
    std::vector<uint8_t> stored(place(rows, 0));
    std::vector<float> row_scales;
    for (int row = 0; row < rows; row++) {
      row_scales.push_back(size * static_cast<float>(0.5 + random.uniform()));
      for (int c = 0; c < columns; c++) {
        const auto drawn = static_cast<uint8_t>(random.next());
        const uint8_t byte = (drawn & 0x7f) == 0x7f ? 0 : drawn;
        stored[place(row, c)] = byte;
        at(row, c) = test::e4m3_of(byte) * row_scales.back();
      }
    }
    bytes = test::upload(stored);
    scales = test::upload(row_scales);
  }
  void fill_q4(Random& random) {
    const std::vector<uint8_t> stored = test::random_q4(random, rows, columns);
    for (int row = 0; row < rows; row++)
      for (int c = 0; c < columns; c++) at(row, c) = static_cast<float>(test::q4_value(stored, columns, row, c).exact());
    bytes = test::upload(stored);
  }
};

enum class Front { none, rms, layer };
enum class KeyNorm { none, head, all };

struct Case {
  int heads, kv_heads, head_dim, columns;
  Front front;
  KeyNorm key_norm;
  double turn_factor;
  Weights weights;
  std::vector<float> norm_weight, norm_bias, key_weight, bias;

  static Case any(Random& random, MatrixType type, Front front, KeyNorm key_norm) {
    const int kv_heads = random.between(1, 3), heads = kv_heads * random.between(1, 4), head_dim = 16 * random.between(1, 6), columns = 32 * random.between(1, 12);
    const int rows = (heads + 2 * kv_heads) * head_dim;
    const double turn_factor = random.chance(0.3) ? 0 : random.chance(0.5) ? 1 : 0.5 + random.uniform();
    Case each{heads, kv_heads, head_dim, columns, front, key_norm, turn_factor, Weights(random, type, rows, columns), {}, {}, {}, {}};
    const auto width = static_cast<size_t>(columns);
    if (front != Front::none) each.norm_weight = normals(random, width, 2);
    if (front == Front::layer) each.norm_bias = normals(random, width, 0.5f);
    if (key_norm != KeyNorm::none) each.key_weight = normals(random, static_cast<size_t>(key_norm == KeyNorm::all ? kv_heads * head_dim : head_dim), 3);
    if (random.chance(0.5)) each.bias = normals(random, static_cast<size_t>(rows), random.chance(0.5) ? 0.1f : 20);
    return each;
  }

  // [keys, values][kv_heads]
  std::vector<float> run() const {
    const auto d_norm = test::upload(norm_weight), d_norm_bias = test::upload(norm_bias), d_key = test::upload(key_weight), d_bias = test::upload(bias);
    const DeviceArray<float> scales(static_cast<size_t>(2 * kv_heads));
    KvScalesTask task{.w = weights.matrix, .bias = d_bias.get(), .columns = columns, .heads = heads, .kv_heads = kv_heads, .head_dim = head_dim};
    task.norm = {d_norm.get(), d_norm_bias.get(), front == Front::layer, 1e-5f, columns};
    task.k_norm = {d_key.get(), nullptr, false, 1e-5f, static_cast<int>(key_weight.size())};
    task.turn_factor = static_cast<float>(turn_factor);
    task.key_scales = scales.get();
    task.value_scales = scales.get() + kv_heads;
    scale_kv(nullptr, task);
    check(cudaDeviceSynchronize(), "finding scales");
    return test::download(scales);
  }

  int first_row(bool is_value, int kv_head) const { return (heads + (is_value ? kv_heads : 0) + kv_head) * head_dim; }
  double weight(int row, int column) const { return weights.values[static_cast<size_t>(row * columns + column)]; }
  double front_weight(int column) const { return front == Front::none ? unnormed_rms : norm_weight[static_cast<size_t>(column)]; }
  double front_bias(int column) const { return front == Front::layer ? norm_bias[static_cast<size_t>(column)] : 0; }
  double key_weight_of(int kv_head, int d) const { return key_weight[static_cast<size_t>(key_norm == KeyNorm::all ? kv_head * head_dim + d : d)]; }

  // What no value of a head exceeds.
  double bound(bool is_value, int kv_head) const {
    double largest = 0;
    for (int d = 0; d < head_dim; d++) {
      const int row = first_row(is_value, kv_head) + d;
      if (!is_value && key_norm != KeyNorm::none) {
        largest = std::max(largest, std::fabs(key_weight_of(kv_head, d)) * std::sqrt(key_weight.size()));
        continue;
      }
      Vector normed;
      double shift = bias.empty() ? 0 : std::fabs(bias[static_cast<size_t>(row)]);
      for (int c = 0; c < columns; c++) normed.push_back(weight(row, c) * front_weight(c)), shift += std::fabs(weight(row, c) * front_bias(c));
      largest = std::max(largest, length_of(normed) * std::sqrt(columns) + shift);
    }
    return largest * (is_value ? 1 : std::max(1.0, std::numbers::sqrt2 * turn_factor));
  }

  // What the norm leaves of a direction, each value then off by the rounding of its type in the sense in which a row has its weights.
  Vector input(const Vector& direction, int row) const {
    Vector x;
    const double length = length_of(direction);
    for (int c = 0; c < columns; c++) {
      const double exact = direction[static_cast<size_t>(c)] / length * std::sqrt(columns) * front_weight(c) + front_bias(c);
      x.push_back(exact + std::fabs(exact) * input_rounding * (weight(row, c) < 0 ? -1 : 1));
    }
    return x;
  }
  // Direction in which a row yields most.
  Vector along(int row) const {
    Vector direction;
    for (int c = 0; c < columns; c++) direction.push_back(weight(row, c) * front_weight(c));
    return direction;
  }
  // A head's keys or values, keys not yet turned.
  Vector head_of(const Vector& x, bool is_value, int kv_head) const {
    const auto yield = [&](int row) {
      double sum = bias.empty() ? 0 : bias[static_cast<size_t>(row)];
      for (int c = 0; c < columns; c++) sum += weight(row, c) * x[static_cast<size_t>(c)];
      return sum;
    };
    const bool is_normed = !is_value && key_norm != KeyNorm::none, over_all = is_normed && key_norm == KeyNorm::all;
    Vector values, normed;
    for (int d = 0; d < head_dim; d++) values.push_back(yield(first_row(is_value, kv_head) + d));
    if (!is_normed) return values;
    for (int d = 0; d < (over_all ? kv_heads * head_dim : head_dim); d++) normed.push_back(yield(first_row(false, over_all ? 0 : kv_head) + d));
    const double factor = std::sqrt(normed.size()) / length_of(normed);
    for (int d = 0; d < head_dim; d++) values[static_cast<size_t>(d)] *= factor * key_weight_of(kv_head, d);
    return values;
  }
  // The largest that it has at any position, whichever values turn into one another.
  double largest_turned(const Vector& values, bool is_value) const {
    double largest = 0;
    for (size_t d = 0; d < values.size(); d++) {
      largest = std::max(largest, std::fabs(values[d]));
      for (const size_t other : {d ^ 1, (d + values.size() / 2) % values.size()})
        if (!is_value) largest = std::max(largest, std::hypot(values[d], values[other]) * turn_factor);
    }
    return largest;
  }
};

void check_case(Random& random, const Case& each) {
  const std::vector<float> scales = each.run();
  for (const bool is_value : {false, true})
    for (int head = 0; head < each.kv_heads; head++) {
      const double scale = scales[static_cast<size_t>(is_value * each.kv_heads + head)], bound = each.bound(is_value, head);
      const auto what = test::sentence("", is_value ? "values" : "keys", " of ", each.columns, " columns, norm ", static_cast<int>(each.front), ", norm of keys ", static_cast<int>(each.key_norm));
      int exponent = 0;
      CHECK(std::frexp(scale, &exponent) == 0.5, what, ": ", scale, " is no power of two");
      CHECK(scale * e4m3_max >= bound && scale * e4m3_max <= 2.2 * bound, what, ": a scale of ", scale, " for a bound of ", bound);
      const int first = each.first_row(is_value, head);
      for (int i = 0; i < 40; i++) {
        const int row = first + random.between(0, each.head_dim - 1), other = first + random.between(0, each.head_dim - 1);
        Vector direction = each.along(row);
        if (i % 4 == 1)  // along two rows, which are turned into one another
          for (int c = 0; c < each.columns; c++) direction[static_cast<size_t>(c)] += each.along(other)[static_cast<size_t>(c)];
        if (i % 4 == 2)
          for (double& value : direction) value = random.normal();
        if (i % 4 == 3)  // one value that is far beyond all others
          for (size_t c = 0; c < direction.size(); c++) direction[c] = c == static_cast<size_t>(i) % direction.size() ? 1 : 0.001 * random.normal();
        const double largest = each.largest_turned(each.head_of(each.input(direction, row), is_value, head), is_value);
        CHECK(largest <= scale * e4m3_max, what, ": ", largest, " is more than 448 times ", scale);
      }
    }
}

}  // namespace

TEST("no input that is normed yields a key or value of more than 448 scales, whatever the weights are stored as, and scales are not much larger than that asks for") {
  test::need_gpu();
  Random random;
  for (const MatrixType type : {MatrixType::bf16, MatrixType::fp8, MatrixType::q4})
    for (const Front front : {Front::none, Front::rms, Front::layer})
      for (const KeyNorm key_norm : {KeyNorm::none, KeyNorm::head, KeyNorm::all})
        for (int repeat = 0; repeat < 6; repeat++) check_case(random, Case::any(random, type, front, key_norm));
}

TEST("weights that are all zero, or beyond all bounds, leave scales of 1") {
  test::need_gpu();
  for (const uint8_t byte : {0x00, 0x7f}) {
    const DeviceArray<uint8_t> weights(48 * 64 * 2);
    check(cudaMemset(weights.get(), byte, weights.bytes()), "filling");
    const DeviceArray<float> scales(2);
    const DeviceMatrix matrix{.values = weights.get(), .rows = 48, .columns = 64};
    scale_kv(nullptr, {.w = matrix, .columns = 64, .heads = 1, .kv_heads = 1, .head_dim = 16, .turn_factor = 1, .key_scales = scales.get(), .value_scales = scales.get() + 1});
    check(cudaDeviceSynchronize(), "finding scales");
    for (const float scale : test::download(scales)) CHECK_EQUAL(scale, 1.0f);
  }
}
