// The backend of CPUs: packs the model's operators once, then runs them one after another, each spread over a team of threads.
#pragma once

#include <memory>
#include <variant>
#include <vector>

#include "../base/team.h"
#include "../kv/slots.h"
#include "../model/backend.h"
#include "../model/model.h"
#include "kernels.h"

namespace millrace {

class CpuBackend final : public Backend {
 public:
  // Packs the weights, which takes a second a gigabyte. The file behind `model`, the slots and the team must outlive the backend.
  CpuBackend(const Model& model, const KvSlots& slots, Team& team, const Kernels& kernels, Precision precision, int tokens_max);

  std::vector<int32_t> run(const Plan& plan) override;
  // What became of the weights' types, for whoever loads the model.
  std::vector<std::string> log() const { return pack_log_.lines(); }

 private:
  // The operators of model.h, their weights packed.
  struct CpuEmbed {
    const FileTensor* weight;
  };
  struct CpuQkv {
    int layer;
    std::vector<float> norm;  // [hidden]
    PackedMatrix weight;      // q rows, k rows, v rows
  };
  struct CpuAttend {
    int layer;
  };
  struct CpuProject {
    PackedMatrix weight;
  };
  struct CpuGateUp {
    std::vector<float> norm;
    PackedMatrix weight;  // bands of gate and up in turns
  };
  struct CpuDown {
    PackedMatrix weight;
  };
  struct CpuLogits {
    std::vector<float> norm;
    PackedMatrix weight;
  };
  using CpuOperator = std::variant<CpuEmbed, CpuQkv, CpuAttend, CpuProject, CpuGateUp, CpuDown, CpuLogits>;

  // One token of the step.
  struct Token {
    int32_t id;
    int position;
    const uint8_t* base;  // of its slot
    int decode;           // its index among rows of one token, or -1
  };
  // A piece of attention for one thread: `tokens` consecutive tokens, `heads` heads of one KV head; all partitions, or one.
  struct Piece {
    int token, tokens, head, heads;
    int partition;  // -1: all, merged in order
  };
  // Room for a matrix's input, quantized too.
  struct Buffer {
    std::vector<float> values, scales, sums;
    std::vector<int8_t> quants;
    std::vector<int32_t> totals;
    void reserve(int64_t tokens, int64_t columns);
    QuantizedRow row(int token, int columns);
    Activations view(int columns) const;
  };

  CpuOperator pack_operator(const Operator& op);
  void lay_out(const Plan& plan);
  void lay_out_attention(int token, int count);

  void run_operator(const CpuEmbed& op);
  void run_operator(const CpuQkv& op);
  void run_operator(const CpuAttend& op);
  void run_operator(const CpuProject& op);
  void run_operator(const CpuGateUp& op);
  void run_operator(const CpuDown& op);
  void run_operator(const CpuLogits& op);

  template <typename Fill>
  Activations activate(int tokens, const PackedMatrix& weight, const Fill& fill);
  void multiply(void (*kernel)(const MatmulTask&), const PackedMatrix& weight, const Activations& x, int tokens, float* y,
                int64_t stride, int bands_a_unit);
  void attend_piece(int layer, const Piece& piece, float* scratch);
  std::vector<int32_t> sample(const Plan& plan);
  int tokens() const { return static_cast<int>(tokens_.size()); }
  float* partial(int decode, int head, int partition);

  const ModelConfig config_;
  const KvSlots& slots_;
  Team& team_;
  const Kernels& kernels_;
  const Precision precision_;
  PackLog pack_log_;
  std::vector<CpuOperator> operators_;
  std::vector<float> rope_frequencies_;  // [rope_dims / 2]

  // One step's state.
  std::vector<Token> tokens_;
  std::vector<int> sampled_tokens_;  // indices into tokens_, one a sample
  std::vector<Piece> pieces_;
  int partitions_ = 0;               // of the longest row of one token
  std::vector<float> x_;             // [tokens][hidden]
  std::vector<float> turns_;         // [tokens][rope_dims], cos and sin by turns
  std::vector<float> qkv_;           // [tokens][(heads + 2 kv_heads) * head_dim]
  std::vector<float> attended_;      // [tokens][heads * head_dim], of rows of several tokens
  std::vector<float> partials_;      // [decode][head][partition][2 + head_dim], of rows of one token
  std::vector<float> gated_;         // [tokens][ffn]
  std::vector<float> logits_;        // [samples][vocabulary]
  float* logits_out_ = nullptr;
  Buffer input_;                     // of the matrix at hand
  std::vector<std::vector<float>> scratch_;  // [thread][queries_max * 2][2 + head_dim]
};

}  // namespace millrace
