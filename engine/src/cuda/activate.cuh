// The functions of model/activation.h.
#pragma once

#include "../model/activation.h"

namespace millrace {

// The factor that is made of the gate, or of what stands alone.
__device__ inline float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::silu:
      return __fdividef(x, 1 + __expf(-x));
    case Activation::gelu_tanh:
      return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    case Activation::gelu_erf:
      return 0.5f * x * (1 + erff(x * 0.7071067812f));
    case Activation::clamped:
      break;
  }
  const float gate = fminf(x, clamped_limit);
  return __fdividef(gate, 1 + __expf(-clamped_alpha * gate));
}

__device__ inline float gated(Activation activation, float gate, float up) {
  if (activation == Activation::clamped) up = fminf(fmaxf(up, -clamped_limit), clamped_limit) + 1;
  return activate(activation, gate) * up;
}

}  // namespace millrace
