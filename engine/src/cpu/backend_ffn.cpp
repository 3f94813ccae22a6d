// The operators of feed-forward layers: one for all tokens, or a few of many experts for each.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "backend.h"

namespace millrace {

void CpuBackend::run_operator(const CpuGateUp& op) {
  const PackedGate& gate = op.gate;
  const Activations x = normed_input(op.norm, tokens(), gate.linear.weight.quantized());
  if (gate.fused) return multiply(kernels_.matmul_gated, gate.linear.weight, x, tokens(), gated_.data(), gate.ffn, 2);
  multiply(kernels_.matmul, gate.linear.weight, x, tokens(), wide_.data(), gate.width(), 1);
  team_.parallel(tokens(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) finish_gate(gate, &wide_[t * gate.width()], &gated_[t * gate.ffn]);
  });
}

// Bias and activation of one token where the matrix's kernel did neither.
void CpuBackend::finish_gate(const PackedGate& gate, float* wide, float* out) const {
  if (gate.fused) {
    std::memcpy(out, wide, sizeof(float) * gate.ffn);
    return;
  }
  if (!gate.linear.bias.empty()) kernels_.add_scaled(wide, gate.linear.bias.data(), 1, gate.width());
  kernels_.gate(gate.activation, gate.gated ? wide : nullptr, gate.gated ? wide + gate.ffn : wide, gate.ffn, out);
}

void CpuBackend::run_operator(const CpuDown& op) {
  const int ffn = op.linear.weight.columns;
  const Activations x = activate(input_, tokens(), ffn, op.linear.weight.quantized(),
                                 [&](int t, float* out, int) { std::memcpy(out, &gated_[int64_t{t} * ffn], sizeof(float) * ffn); });
  add_to_stream(op.linear, op.post_norm, x);
}

// Tokens are gathered by expert, so that each expert's weights are read once a step; each token then adds its experts' results in the
// order of its own scores, so that its sum does not know who else is in the step.
void CpuBackend::run_operator(const CpuExperts& op) {
  const PackedGate& gate = op.experts[0].gate;
  const int hidden = config_.hidden, entries = tokens() * op.used;
  // Experts may be packed differently, where one's values fit a packing and another's do not.
  const auto any = [&](auto matrix_of) { return std::ranges::any_of(op.experts, [&](const auto& e) { return matrix_of(e)->quantized(); }); };
  const auto gate_of = [](const CpuExperts::Expert& e) { return &e.gate.linear.weight; };
  const auto down_of = [](const CpuExperts::Expert& e) { return &e.down.weight; };
  const bool quantized = any(gate_of);
  const Activations x = normed_input(op.norm, tokens(), quantized || op.router.weight.quantized());
  multiply(kernels_.matmul, op.router.weight, x, tokens(), routing_.scores.data(), op.router.weight.rows, 1);
  route(op);
  team_.parallel(tokens(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++)
      for (int i = 0; i < op.used; i++) routing_.input.copy_row(routing_.entries[t * op.used + i], input_, static_cast<int>(t), hidden, quantized);
  });

  multiply_experts(op, gate.fused ? kernels_.matmul_gated : kernels_.matmul, gate_of, routing_.input, routing_.wide.data(), gate.width(), gate.fused ? 2 : 1);
  activate(routing_.gated, entries, gate.ffn, any(down_of), [&](int entry, float* out, int) {
    const auto after = std::upper_bound(routing_.first.begin(), routing_.first.end(), entry);
    finish_gate(op.experts[static_cast<size_t>(after - routing_.first.begin() - 1)].gate, &routing_.wide[int64_t{entry} * gate.width()], out);
  });
  multiply_experts(op, kernels_.matmul, down_of, routing_.gated, routing_.added.data(), hidden, 1);

  team_.parallel(tokens(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) {
      float* sum = &added_[t * hidden];
      std::fill(sum, sum + hidden, 0.0f);
      for (int64_t i = t * op.used; i < (t + 1) * op.used; i++) {
        const std::vector<float>& bias = op.experts[static_cast<size_t>(routing_.chosen[i])].down.bias;
        float* added = &routing_.added[int64_t{routing_.entries[i]} * hidden];
        if (!bias.empty()) kernels_.add_scaled(added, bias.data(), 1, hidden);
        kernels_.add_scaled(sum, added, routing_.weights[i], hidden);
      }
      kernels_.add_scaled(&x_[t * hidden], sum, 1, hidden);
    }
  });
}

// Chooses each token's experts, and numbers the entries by expert, then token.
void CpuBackend::route(const CpuExperts& op) {
  team_.parallel(tokens(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) choose(op, static_cast<int>(t));
  });
  std::vector<int>& first = routing_.first;
  const int entries = tokens() * op.used;
  std::fill(first.begin(), first.end(), 0);
  for (int i = 0; i < entries; i++) first[static_cast<size_t>(routing_.chosen[i]) + 1]++;
  std::partial_sum(first.begin(), first.end(), first.begin());
  std::vector<int> next(first.begin(), first.end() - 1);
  for (int i = 0; i < entries; i++) routing_.entries[i] = next[static_cast<size_t>(routing_.chosen[i])]++;
}

// The `used` experts of the highest scores, the first of equals, and their shares of the softmax.
void CpuBackend::choose(const CpuExperts& op, int token) {
  const int experts = op.router.weight.rows;
  float* scores = &routing_.scores[int64_t{token} * experts];
  for (size_t e = 0; e < op.router.bias.size(); e++) scores[e] += op.router.bias[e];
  int* chosen = &routing_.chosen[int64_t{token} * op.used];
  std::vector<int> order(static_cast<size_t>(experts));
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + op.used, order.end(),
                    [&](int a, int b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; });
  std::copy_n(order.begin(), op.used, chosen);

  float* weights = &routing_.weights[int64_t{token} * op.used];
  const float largest = scores[chosen[0]];
  double sum = 0;
  if (!op.normalized)
    for (int e = 0; e < experts; e++) sum += std::exp(scores[e] - largest);
  for (int i = 0; i < op.used; i++) {
    weights[i] = std::exp(scores[chosen[i]] - largest);
    if (op.normalized) sum += weights[i];
  }
  for (int i = 0; i < op.used; i++) weights[i] = static_cast<float>(weights[i] / sum);
}

// y[entry] = matrix of the entry's expert . input[entry], the bands of all experts that have entries spread over the team.
template <typename MatrixOf>
void CpuBackend::multiply_experts(const CpuExperts& op, void (*kernel)(const MatmulTask&), const MatrixOf& matrix_of, const Buffer& input, float* y,
                                  int64_t stride, int bands_a_unit) {
  std::vector<int> active;
  for (int e = 0; e < static_cast<int>(op.experts.size()); e++)
    if (routing_.first[e + 1] > routing_.first[e]) active.push_back(e);
  const int units = matrix_of(op.experts[0])->bands / bands_a_unit;
  const int chunk = std::max<int>(1, units * static_cast<int>(active.size()) / (8 * team_.size()));
  team_.parallel(static_cast<int64_t>(units) * static_cast<int64_t>(active.size()), chunk, [&](int64_t begin, int64_t end, int) {
    while (begin < end) {
      const int e = active[static_cast<size_t>(begin / units)], from = static_cast<int>(begin % units);
      const int to = static_cast<int>(std::min<int64_t>(units, from + end - begin)), first = routing_.first[e];
      const PackedMatrix* matrix = matrix_of(op.experts[static_cast<size_t>(e)]);
      kernel({matrix, input.view(matrix->columns, first), routing_.first[e + 1] - first, from, to, y + first * stride, stride});
      begin += to - from;
    }
  });
}

}  // namespace millrace
