#include "operators.h"

namespace millrace {
namespace {

PackedNorm pack_norm(const Norm& norm) { return {read_vector(norm.weight), read_vector(norm.bias), norm.kind, norm.epsilon}; }

struct Packer {
  const ModelConfig& config;
  bool as_float32;
  PackLog& log;

  // Rows of several matrices one after another.
  PackedLinear linear(const std::vector<Linear>& parts) const {
    std::vector<const FileTensor*> weights;
    for (const Linear& part : parts) weights.push_back(part.weight);
    return {pack(weights, false, as_float32, &log), biases_of(parts)};
  }

  // Fused where the kernel knows the activation and there is no bias to add before it.
  PackedGate gate(const Linear& gate, const Linear& up, Activation activation) const {
    PackedGate packed{.activation = activation, .gated = gate.weight != nullptr, .ffn = static_cast<int>(up.weight->rows())};
    packed.fused = packed.gated && activation == Activation::silu && gate.bias == nullptr && up.bias == nullptr;
    if (packed.fused)
      packed.linear.weight = pack({gate.weight, up.weight}, true, as_float32, &log);
    else
      packed.linear = packed.gated ? linear({gate, up}) : linear({up});
    return packed;
  }

  CpuOperator operator()(const Embed& op) const { return CpuEmbed{op.weight, op.scale}; }
  CpuOperator operator()(const Qkv& op) const {
    return CpuQkv{op.layer, pack_norm(op.norm), linear(op.parts), pack_norm(op.q_norm), pack_norm(op.k_norm), op.rope, op.query_scale};
  }
  CpuOperator operator()(const Attend& op) const {
    CpuAttend packed{op.layer, op.window, op.soft_cap, {}};
    // A sink is one more position whose value is 0: its own largest score, a sum of e^0, and nothing weighted.
    for (const float sink : read_vector(op.sinks)) {
      packed.sinks.push_back(sink);
      packed.sinks.push_back(1);
      packed.sinks.resize(packed.sinks.size() + static_cast<size_t>(config.head_dim));
    }
    return packed;
  }
  CpuOperator operator()(const Project& op) const { return CpuProject{linear({op.output}), pack_norm(op.post_norm)}; }
  CpuOperator operator()(const GateUp& op) const { return CpuGateUp{pack_norm(op.norm), gate(op.gate, op.up, op.activation)}; }
  CpuOperator operator()(const Down& op) const { return CpuDown{linear({op.down}), pack_norm(op.post_norm)}; }
  CpuOperator operator()(const Experts& op) const {
    CpuExperts packed{.norm = pack_norm(op.norm), .router = linear({op.router}), .used = op.used, .normalized = op.normalized};
    for (const Expert& expert : op.experts) packed.experts.push_back({gate(expert.gate, expert.up, op.activation), linear({expert.down})});
    return packed;
  }
  CpuOperator operator()(const Logits& op) const { return CpuLogits{pack_norm(op.norm), linear({op.output}), op.soft_cap}; }
};

// Adds a matrix of which each token of a step uses `part`.
struct Counter {
  MatrixWork& work;

  void add(const PackedMatrix& weight, double part = 1) const {
    work.weight_bytes += bytes_of(weight, part);
    work.token_multiply_adds += products_of(weight, part);
  }
  static uint64_t bytes_of(const PackedMatrix& weight, double part) { return static_cast<uint64_t>(part * static_cast<double>(weight.bands * weight.band_bytes)); }
  static uint64_t products_of(const PackedMatrix& weight, double part) { return static_cast<uint64_t>(part * static_cast<double>(int64_t{weight.rows} * weight.columns)); }

  void operator()(const CpuEmbed&) const {}  // one row of it
  void operator()(const CpuAttend&) const {}
  void operator()(const CpuQkv& op) const { add(op.linear.weight); }
  void operator()(const CpuProject& op) const { add(op.linear.weight); }
  void operator()(const CpuGateUp& op) const { add(op.gate.linear.weight); }
  void operator()(const CpuDown& op) const { add(op.linear.weight); }
  void operator()(const CpuExperts& op) const {
    add(op.router.weight);
    const double part = op.used / static_cast<double>(op.experts.size());
    for (const CpuExperts::Expert& expert : op.experts) {
      add(expert.gate.linear.weight, part);
      add(expert.down.weight, part);
    }
  }
  void operator()(const CpuLogits& op) const {
    work.weight_bytes += bytes_of(op.linear.weight, 1);
    work.sample_multiply_adds += products_of(op.linear.weight, 1);
  }
};

}  // namespace

void add_work(const CpuOperator& op, MatrixWork& work) { std::visit(Counter{work}, op); }

CpuOperator pack_operator(const Operator& op, const ModelConfig& config, bool as_float32, PackLog& log) { return std::visit(Packer{config, as_float32, log}, op); }

}  // namespace millrace
