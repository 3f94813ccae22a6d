// The reference's kernels over one token's values; reference.cpp has those over matrices and memory, and the table of all.
#pragma once

#include "../model/activation.h"

namespace millrace {

void reference_norm(const float* x, const float* weight, float epsilon, int n, float* y);
void reference_layer_norm(const float* x, const float* weight, const float* bias, float epsilon, int n, float* y);
void reference_add_scaled(float* y, const float* x, float scale, int n);
void reference_gate(Activation activation, const float* gate, const float* up, int n, float* out);
void reference_soft_cap(float* x, int n, float cap);
void reference_rope(float* x, const float* turns, int pairs, int head_dim, float scale);
void reference_rope_halves(float* x, const float* turns, int pairs, int head_dim, float scale);

}  // namespace millrace
