// A model as data: its numbers, and the list of coarse operators that a step runs through. An architecture is one file in
// architectures/ that writes this list; a backend is what carries it out. What models do differently is a field of an operator: a
// backend may use several kernels for one operator, and never has to find out that several are one.
#pragma once

#include <deque>
#include <string>
#include <variant>
#include <vector>

#include "../format/model_file.h"
#include "activation.h"
#include "status.h"

namespace millrace {

struct ModelConfig {
  int layers = 0;
  int hidden = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int vocabulary = 0;
  int context = 0;
};

// How a head's leading dimensions turn with the position: pair i by position * frequencies[i], then times attention_factor.
struct Rope {
  enum class Style { interleaved, halves };  // the pairs (2i, 2i + 1), or (i, i + dims / 2)
  Style style = Style::interleaved;
  std::vector<float> frequencies;       // [dims / 2], in radians a position
  std::vector<float> frequencies_long;  // [dims / 2] for contexts beyond original_context, or none
  int original_context = 0;
  float attention_factor = 1;

  int dims() const { return 2 * static_cast<int>(frequencies.size()); }
};

// Shapes are [rows][columns], rows contiguous; a projection's rows are its outputs. A null tensor is one that the model does without.
struct Norm {
  enum class Kind { rms, layer };  // x / rms(x), or (x - mean) / deviation
  const FileTensor* weight = nullptr;  // [n]; null: no norm at all
  const FileTensor* bias = nullptr;    // [n], of kind `layer`
  Kind kind = Kind::rms;
  float epsilon = 0;
};
struct Linear {
  const FileTensor* weight = nullptr;
  const FileTensor* bias = nullptr;  // [rows]
};

// x is the residual stream, [tokens][hidden].
struct Embed {
  const FileTensor* weight;  // [vocabulary][hidden]
  float scale = 1;
};
// x -> norm -> q, k, v -> norms of q and k -> RoPE on both -> q times query_scale, k and v into KV memory.
struct Qkv {
  int layer;
  Norm norm;
  std::vector<Linear> parts;  // q, k, v; or one of [heads * head_dim + 2 * kv_heads * head_dim][hidden], in that order
  Norm q_norm, k_norm;        // of [head_dim], over each head; or of all heads' width, over the whole
  int rope;                   // index into Model::ropes
  float query_scale;
};
// Each token over its own sequence's positions up to itself: [tokens][heads * head_dim].
struct Attend {
  int layer;
  int window = 0;                     // positions seen, itself included; 0: all
  float soft_cap = 0;                 // scores become soft_cap * tanh(score / soft_cap); 0: they stay
  const FileTensor* sinks = nullptr;  // [heads], scores of a position that has no value
};
struct Project {  // x += post_norm(attention's projection)
  Linear output;  // [hidden][heads * head_dim]
  Norm post_norm;
};
struct GateUp {  // activation(gate . norm(x)) * (up . norm(x)): [tokens][ffn]
  Norm norm;
  Linear gate;   // [ffn][hidden], or none: activation(up . norm(x))
  Linear up;     // [ffn][hidden]
  Activation activation;
};
struct Down {    // x += post_norm(down . (gated))
  Linear down;   // [hidden][ffn]
  Norm post_norm;
};
struct Expert {
  Linear gate, up, down;  // [ffn][hidden], [ffn][hidden], [hidden][ffn]
};
// x += the sum over the `used` experts that a token's router scores highest, of softmax weight * expert(norm(x)).
struct Experts {
  Norm norm;
  Linear router;  // [experts][hidden]
  std::vector<Expert> experts;
  int used;
  bool normalized;  // whether the weights of those used are made to sum to 1
  Activation activation;
};
struct Logits {   // of sampled positions only: [samples][vocabulary]
  Norm norm;
  Linear output;  // [vocabulary][hidden]; the embedding's where the two are tied
  float soft_cap = 0;
};
using Operator = std::variant<Embed, Qkv, Attend, Project, GateUp, Down, Experts, Logits>;

struct Model {
  std::string architecture, name;
  ModelConfig config;
  std::vector<Rope> ropes;
  // In the order of their execution. Where attention and feed-forward read the same x, GateUp stands before Project.
  std::vector<Operator> operators;
  std::deque<FileTensor> slices;  // rows of the file's tensors that are tensors of their own here
  uint64_t parameters = 0;
};

// Reads the operators out of a file whose architecture we have; refuses others by name.
Result<Model> read_model(const ModelFile& file);

// The biases of matrices whose rows follow one another. Where only some have one, the others' is 0; where none has, there are none.
std::vector<float> biases_of(const std::vector<Linear>& parts);

// The window of each layer, 0 where it sees all of a context of so many tokens.
std::vector<int> windows_of(const Model& model, int context_tokens);

// Chooses between the frequencies for short and for long contexts: once for all, since keys that were turned stay in memory.
void choose_frequencies(Model& model, int context_tokens);

}  // namespace millrace
