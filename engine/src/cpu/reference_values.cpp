// The plain kernels over one token's values.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "reference.h"

namespace millrace {
namespace {

float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu_tanh:
      return 0.5f * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi_v<float>) * (x + 0.044715f * x * x * x)));
    case Activation::gelu_erf:
      return 0.5f * x * (1 + std::erf(x / std::numbers::sqrt2_v<float>));
    case Activation::clamped:
      break;
  }
  const float gate = std::min(x, clamped_limit);
  return gate / (1 + std::exp(-clamped_alpha * gate));
}

}  // namespace

void reference_norm(const float* x, const float* weight, float epsilon, int n, float* y) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += double{x[i]} * x[i];
  const float scale = static_cast<float>(1 / std::sqrt(sum / n + epsilon));
  for (int i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

void reference_layer_norm(const float* x, const float* weight, const float* bias, float epsilon, int n, float* y) {
  double sum = 0, squares = 0;
  for (int i = 0; i < n; i++) sum += x[i];
  const double mean = sum / n;
  for (int i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
  const double scale = 1 / std::sqrt(squares / n + epsilon);
  for (int i = 0; i < n; i++) y[i] = static_cast<float>((x[i] - mean) * scale) * weight[i] + bias[i];
}

void reference_add_scaled(float* y, const float* x, float scale, int n) {
  for (int i = 0; i < n; i++) y[i] += scale * x[i];
}

void reference_gate(Activation activation, const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; i++) {
    float factor = gate == nullptr ? 1 : up[i];
    if (activation == Activation::clamped) factor = std::clamp(factor, -clamped_limit, clamped_limit) + 1;
    out[i] = activate(activation, gate == nullptr ? up[i] : gate[i]) * factor;
  }
}

void reference_soft_cap(float* x, int n, float cap) {
  for (int i = 0; i < n; i++) x[i] = cap * std::tanh(x[i] / cap);
}

void reference_rope(float* x, const float* turns, int pairs, int head_dim, float scale) {
  for (int i = 0; i < pairs; i++) {
    const float cosine = turns[2 * i], sine = turns[2 * i + 1], even = x[2 * i], odd = x[2 * i + 1];
    x[2 * i] = even * cosine - odd * sine;
    x[2 * i + 1] = even * sine + odd * cosine;
  }
  for (int i = 0; i < head_dim; i++) x[i] *= scale;
}

void reference_rope_halves(float* x, const float* turns, int pairs, int head_dim, float scale) {
  for (int i = 0; i < pairs; i++) {
    const float cosine = turns[i], sine = turns[pairs + i], low = x[i], high = x[pairs + i];
    x[i] = low * cosine - high * sine;
    x[pairs + i] = low * sine + high * cosine;
  }
  for (int i = 0; i < head_dim; i++) x[i] *= scale;
}

}  // namespace millrace
