// The operators of model.h as the CPU runs them: matrices packed, vectors in float32.
#pragma once

#include <variant>
#include <vector>

#include "../model/model.h"
#include "engine.h"
#include "pack.h"

namespace millrace {

struct PackedNorm {
  std::vector<float> weight;  // [n]; none: no norm
  std::vector<float> bias;    // [n], of kind `layer`
  Norm::Kind kind = Norm::Kind::rms;
  float epsilon = 0;

  explicit operator bool() const { return !weight.empty(); }
};
struct PackedLinear {
  PackedMatrix weight;
  std::vector<float> bias;  // [rows], or none
};
// The first half of a feed-forward layer, of all tokens or of an expert's.
struct PackedGate {
  PackedLinear linear;  // fused: bands of gate and up in turns; else gate rows, then up rows; or up rows only
  Activation activation = Activation::silu;
  bool fused = false;   // whether matmul_gated does all of it
  bool gated = false;   // whether there is a gate
  int ffn = 0;

  // Values a token that the matrix yields.
  int width() const { return gated && !fused ? 2 * ffn : ffn; }
};

struct CpuEmbed {
  const FileTensor* weight;
  float scale;
};
struct CpuQkv {
  int layer;
  PackedNorm norm;
  PackedLinear linear;  // q rows, k rows, v rows
  PackedNorm q_norm, k_norm;
  int rope;
  float query_scale;
};
struct CpuAttend {
  int layer, window;
  float soft_cap;
  std::vector<float> sinks;  // [heads][2 + head_dim], as partial results of attention; or none
};
struct CpuProject {
  PackedLinear linear;
  PackedNorm post_norm;
};
struct CpuGateUp {
  PackedNorm norm;
  PackedGate gate;
};
struct CpuDown {
  PackedLinear linear;
  PackedNorm post_norm;
};
struct CpuExperts {
  struct Expert {
    PackedGate gate;
    PackedLinear down;
  };
  PackedNorm norm;
  PackedLinear router;
  std::vector<Expert> experts;
  int used;
  bool normalized;
};
struct CpuLogits {
  PackedNorm norm;
  PackedLinear linear;
  float soft_cap;
};
using CpuOperator = std::variant<CpuEmbed, CpuQkv, CpuAttend, CpuProject, CpuGateUp, CpuDown, CpuExperts, CpuLogits>;

// Takes a second a gigabyte. What `op` points to must outlive the result where it is an embedding.
CpuOperator pack_operator(const Operator& op, const ModelConfig& config, bool as_float32, PackLog& log);

// Adds what the operator's matrices ask of a step.
void add_work(const CpuOperator& op, MatrixWork& work);

}  // namespace millrace
