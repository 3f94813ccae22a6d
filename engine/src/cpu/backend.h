// The backend of CPUs: packs the model's operators once, then runs them one after another, each spread over a team of threads.
// backend.cpp lays a step out and has what the operators share; attention, feed-forward and experts have files of their own.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "../base/team.h"
#include "../kv/slots.h"
#include "../model/backend.h"
#include "../model/model.h"
#include "kernels.h"
#include "operators.h"

namespace millrace {

class CpuBackend final : public Backend {
 public:
  // Packs the weights, which takes a second a gigabyte. The file behind `model`, the slots and the team must outlive the backend.
  CpuBackend(const Model& model, const KvSlots& slots, Team& team, const Kernels& kernels, Precision precision, int tokens_max);

  // A plan is computed when it is finished; one ahead is for tests of those who plan ahead.
  void begin(const Plan& plan) override { begun_.push_back(plan); }
  std::vector<SampledToken> finish() override;
  int steps_ahead() const override { return steps_ahead_; }
  void plan_ahead(int steps) { steps_ahead_ = steps; }
  // What became of the weights' types, for whoever loads the model.
  std::vector<std::string> log() const { return pack_log_.lines(); }
  MatrixWork work() const;

 private:
  // One token of the step.
  struct Token {
    int32_t id;
    int position;
    int slot;
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
    Activations view(int columns, int first = 0) const;
    void copy_row(int to, const Buffer& from, int token, int columns, bool quantized);
  };
  // What a step's tokens were routed to. An entry is one token at one of its experts; entries are ordered by expert, then token.
  struct Routing {
    std::vector<float> scores;       // [tokens][experts]
    std::vector<int> chosen;         // [tokens][used], the best first
    std::vector<float> weights;      // [tokens][used]
    std::vector<int> entries;        // [tokens][used], the number of each one's entry
    std::vector<int> first;          // [experts + 1], the entries of expert e: first[e] to first[e + 1] - 1
    Buffer input, gated;             // [entries][hidden], [entries][ffn]
    std::vector<float> wide, added;  // [entries][width], [entries][hidden]
  };
  struct Turns {
    Rope rope;
    std::vector<float> values;  // [tokens][dims], as Kernels::rope wants them
  };

  void reserve(int tokens_max);
  void lay_out(const Plan& plan);
  void lay_out_attention(int token, int count);
  std::vector<SampledToken> sample(const Plan& plan);

  void run_operator(const CpuEmbed& op);
  void run_operator(const CpuQkv& op);
  void run_operator(const CpuAttend& op);
  void run_operator(const CpuProject& op);
  void run_operator(const CpuGateUp& op);
  void run_operator(const CpuDown& op);
  void run_operator(const CpuExperts& op);
  void run_operator(const CpuLogits& op);

  // Shared by operators. `fill(token, out, rank)` writes the [columns] values of one token.
  template <typename Fill>
  Activations activate(Buffer& buffer, int tokens, int columns, bool quantized, const Fill& fill);
  Activations normed_input(const PackedNorm& norm, int tokens, bool quantized);
  void multiply(void (*kernel)(const MatmulTask&), const PackedMatrix& weight, const Activations& x, int tokens, float* y, int64_t stride,
                int bands_a_unit);
  void normalize(const PackedNorm& norm, const float* x, int n, float* y) const;
  void add_to_stream(const PackedLinear& linear, const PackedNorm& post_norm, const Activations& x);
  void finish_gate(const PackedGate& gate, float* wide, float* out) const;

  // Of attention.
  void fill_turns(Turns& turns, int64_t token);
  void finish_heads(const CpuQkv& op);
  void attend_piece(const CpuAttend& op, const Piece& piece, float* scratch);
  void begin_merge(const CpuAttend& op, int head, float* merged) const;
  float* partial(int decode, int head, int partition);

  // Of experts.
  void route(const CpuExperts& op);
  void choose(const CpuExperts& op, int token);
  template <typename MatrixOf>
  void multiply_experts(const CpuExperts& op, void (*kernel)(const MatmulTask&), const MatrixOf& matrix_of, const Buffer& input, float* y, int64_t stride,
                        int bands_a_unit);

  int tokens() const { return static_cast<int>(tokens_.size()); }

  const ModelConfig config_;
  const KvSlots& slots_;
  Team& team_;
  const Kernels& kernels_;
  PackLog pack_log_;
  std::vector<CpuOperator> operators_;

  int steps_ahead_ = 0;
  std::deque<Plan> begun_;
  std::vector<int32_t> last_tokens_;  // [slots], sampled last

  // One step's state.
  std::vector<Token> tokens_;
  std::vector<int> sampled_tokens_;  // indices into tokens_, one a sample
  std::vector<Piece> pieces_;
  int partitions_ = 0;           // of the longest row of one token
  std::vector<Turns> turns_;     // one a RoPE of the model
  std::vector<float> x_;         // [tokens][hidden]
  std::vector<float> qkv_;       // [tokens][(heads + 2 kv_heads) * head_dim]
  std::vector<float> attended_;  // [tokens][heads * head_dim], of rows of several tokens
  std::vector<float> partials_;  // [decode][head][partition][2 + head_dim], of rows of one token
  std::vector<float> wide_;      // [tokens][2 * ffn], gate and up before their activation
  std::vector<float> gated_;     // [tokens][ffn]
  std::vector<float> added_;     // [tokens][hidden], what is yet to be added to x
  std::vector<float> logits_;    // [samples][vocabulary]
  float* logits_out_ = nullptr;
  Buffer input_;                 // of the matrix at hand
  Routing routing_;
  std::vector<std::vector<float>> scratch_;  // [thread][queries_max * 2][2 + head_dim]
};

// Fills a matrix's input, token by token, and quantizes it where a quantized matrix will read it.
template <typename Fill>
Activations CpuBackend::activate(Buffer& buffer, int tokens, int columns, bool quantized, const Fill& fill) {
  team_.parallel(tokens, 1, [&](int64_t begin, int64_t end, int rank) {
    for (int t = static_cast<int>(begin); t < end; t++) {
      float* values = &buffer.values[int64_t{t} * columns];
      fill(t, values, rank);
      if (quantized) kernels_.quantize(values, columns, buffer.row(t, columns));
    }
  });
  return buffer.view(columns);
}

}  // namespace millrace
