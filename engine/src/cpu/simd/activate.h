// Activations and soft caps over lanes L.
#pragma once

#include <cmath>
#include <cstring>
#include <numbers>

#include "../kernels.h"
#include "math.h"

namespace millrace {
namespace {

template <typename L, Activation activation>
void gate_by(const float* gate, const float* up, int n, float* out) {
  using F = typename L::F;
  const F one = L::all(1), limit = L::all(clamped_limit), lowest = L::all(-clamped_limit);
  for (int i = 0; i < n; i += L::width) {
    const F x = L::load((gate == nullptr ? up : gate) + i);
    F factor = gate == nullptr ? one : L::load(up + i), activated = x;
    if constexpr (activation == Activation::silu) activated = L::mul(x, sigmoid<L>(x));
    if constexpr (activation == Activation::gelu_tanh) {
      // 0.5 (1 + tanh(u)) = sigmoid(2u).
      const F cube = L::mul(L::mul(x, x), L::mul(x, L::all(0.044715f)));
      activated = L::mul(x, sigmoid<L>(L::mul(L::add(x, cube), L::all(1.59576912f))));
    }
    if constexpr (activation == Activation::gelu_erf) {
      // Rare, and a small part of its model's time: lane by lane.
      alignas(64) float lanes[L::width];
      L::store(lanes, x);
      for (float& lane : lanes) lane = 0.5f * lane * (1 + std::erf(lane * (1 / std::numbers::sqrt2_v<float>)));
      activated = L::load(lanes);
    }
    if constexpr (activation == Activation::clamped) {
      const F held = L::min(x, limit);
      activated = L::mul(held, sigmoid<L>(L::mul(held, L::all(clamped_alpha))));
      factor = L::add(L::max(L::min(factor, limit), lowest), one);
    }
    L::store(out + i, L::mul(activated, factor));
  }
}

template <typename L>
void gate(Activation activation, const float* gate, const float* up, int n, float* out) {
  switch (activation) {
    case Activation::silu:
      return gate_by<L, Activation::silu>(gate, up, n, out);
    case Activation::gelu_tanh:
      return gate_by<L, Activation::gelu_tanh>(gate, up, n, out);
    case Activation::gelu_erf:
      return gate_by<L, Activation::gelu_erf>(gate, up, n, out);
    case Activation::clamped:
      return gate_by<L, Activation::clamped>(gate, up, n, out);
  }
}

template <typename L>
void soft_cap(float* x, int n, float cap) {
  int i = 0;
  for (; i + L::width <= n; i += L::width) L::store(x + i, capped<L>(L::load(x + i), cap));
  if (i == n) return;
  float rest[L::width] = {};
  std::memcpy(rest, x + i, sizeof(float) * (n - i));
  L::store(rest, capped<L>(L::load(rest), cap));
  std::memcpy(x + i, rest, sizeof(float) * (n - i));
}

}  // namespace
}  // namespace millrace
