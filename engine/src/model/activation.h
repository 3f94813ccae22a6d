// The functions between the two halves of a feed-forward layer.
#pragma once

namespace millrace {

// clamped: gpt-oss's gate' * sigmoid(1.702 gate') * (up' + 1), with gate' = min(gate, 7) and up' = up held within 7 of 0.
enum class Activation { silu, gelu_tanh, gelu_erf, clamped };

constexpr float clamped_limit = 7, clamped_alpha = 1.702f;

}  // namespace millrace
