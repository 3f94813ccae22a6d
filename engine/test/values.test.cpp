// Kernels over one token's values: every set against double precision, over lengths that are no multiple of a vector where that is allowed.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "support/kernel_sets.h"

using namespace millrace;

namespace {

using Values = std::vector<float>;

void check_near(const Values& got, const std::vector<double>& right, double loss, const char* what) {
  for (size_t i = 0; i < right.size(); i++)
    CHECK(std::fabs(got[i] - right[i]) <= loss * (1 + std::fabs(right[i])), what, " at ", i, ": ", got[i], ", not ", right[i]);
}

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf:
      return 0.5 * x * std::erfc(-x / std::numbers::sqrt2);
    case Activation::clamped:
      break;
  }
  return std::min(x, 7.0) / (1 + std::exp(-1.702 * std::min(x, 7.0)));
}

void check_norms(const Kernels& kernels) {
  test::Random random;
  for (const int n : {16, 48, 576}) {
    const Values x = random.normals(n), weight = random.normals(n), bias = random.normals(n);
    double sum = 0, squares = 0, variance = 0;
    for (const float value : x) sum += value, squares += double{value} * value;
    for (const float value : x) variance += (value - sum / n) * (value - sum / n) / n;
    std::vector<double> rms, layer;
    for (size_t i = 0; i < x.size(); i++) {
      rms.push_back(x[i] / std::sqrt(squares / n + 1e-5) * weight[i]);
      layer.push_back((x[i] - sum / n) / std::sqrt(variance + 1e-5) * weight[i] + bias[i]);
    }
    Values y = x;
    kernels.norm(y.data(), weight.data(), 1e-5f, n, y.data());
    check_near(y, rms, 2e-6, "rms norm in place");
    kernels.layer_norm(x.data(), weight.data(), bias.data(), 1e-5f, n, y.data());
    check_near(y, layer, 2e-6, "layer norm");
  }
}

void check_gates(const Kernels& kernels) {
  test::Random random;
  for (const Activation activation : {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::clamped}) {
    Values gate = random.normals(64), up = random.normals(64), out(64);
    for (size_t i = 0; i < 64; i++) gate[i] *= 5, up[i] *= 5;
    gate[0] = 40, gate[1] = -40, gate[2] = 0, up[3] = 40, up[4] = -40;
    std::vector<double> gated, plain;
    for (size_t i = 0; i < 64; i++) {
      const bool clamped = activation == Activation::clamped;
      gated.push_back(activated(activation, gate[i]) * (clamped ? std::clamp(double{up[i]}, -7.0, 7.0) + 1 : up[i]));
      plain.push_back(activated(activation, up[i]));
    }
    kernels.gate(activation, gate.data(), up.data(), 64, out.data());
    check_near(out, gated, 1e-5, "gated");
    if (activation == Activation::clamped) continue;  // always has a gate
    kernels.gate(activation, nullptr, up.data(), 64, out.data());
    check_near(out, plain, 1e-5, "without a gate");
  }
}

void check_small(const Kernels& kernels) {
  test::Random random;
  for (const int n : {1, 7, 8, 31, 272}) {
    Values x = random.normals(n);
    for (float& value : x) value *= 100;
    std::vector<double> capped;
    for (const float value : x) capped.push_back(30 * std::tanh(value / 30.0));
    kernels.soft_cap(x.data(), n, 30);
    check_near(x, capped, 1e-5, "soft cap");
  }
  Values y = random.normals(48);
  const Values before = y, x = random.normals(48);
  kernels.add_scaled(y.data(), x.data(), 0.25f, 48);
  std::vector<double> sums;
  for (size_t i = 0; i < 48; i++) sums.push_back(before[i] + 0.25 * x[i]);
  check_near(y, sums, 1e-6, "sum");
}

// A turn keeps a pair's length and leaves what does not turn; both styles turn the same pairs by another name.
void check_ropes(const Kernels& kernels) {
  test::Random random;
  for (const int pairs : {1, 6, 8, 16, 32}) {
    const int head_dim = 64;
    Values halves = random.normals(head_dim), interleaved(halves), by_halves, in_turns;
    const auto count = static_cast<size_t>(pairs);
    std::vector<double> right(halves.begin(), halves.end());
    for (size_t i = 0; i < count; i++) {
      const float angle = random.normal();
      const double low = halves[i], high = halves[count + i];
      interleaved[2 * i] = halves[i];
      interleaved[2 * i + 1] = halves[count + i];
      right[i] = low * std::cos(angle) - high * std::sin(angle);
      right[count + i] = low * std::sin(angle) + high * std::cos(angle);
      by_halves.insert(by_halves.begin() + static_cast<std::ptrdiff_t>(i), std::cos(angle));
      by_halves.push_back(std::sin(angle));
      in_turns.push_back(std::cos(angle));
      in_turns.push_back(std::sin(angle));
    }
    for (double& value : right) value *= 0.5;
    kernels.rope_halves(halves.data(), by_halves.data(), pairs, head_dim, 0.5f);
    kernels.rope(interleaved.data(), in_turns.data(), pairs, head_dim, 0.5f);
    check_near(halves, right, 1e-6, "halves");
    for (size_t i = 0; i < count; i++) {
      CHECK(std::fabs(interleaved[2 * i] - right[i]) <= 1e-6 * (1 + std::fabs(right[i])), "interleaved pair ", i);
      CHECK(std::fabs(interleaved[2 * i + 1] - right[count + i]) <= 1e-6 * (1 + std::fabs(right[count + i])), "interleaved pair ", i);
    }
  }
}

void check(const Kernels& kernels) {
  check_norms(kernels);
  check_gates(kernels);
  check_small(kernels);
  check_ropes(kernels);
}

}  // namespace

TEST("the reference normalizes, activates, caps and turns as double precision does") { check(reference_kernels); }
TEST("AVX2 normalizes, activates, caps and turns as double precision does") { check(test::kernels_or_skip(KernelSet::avx2)); }
TEST("AVX-512 normalizes, activates, caps and turns as double precision does") { check(test::kernels_or_skip(KernelSet::avx512)); }
